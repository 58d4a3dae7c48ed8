;;; The worker library for Guile programs, 3.0 or later, in Guile alone:
;;;
;;;     (use-modules (poolparty))
;;;     (serve (lambda (request) "hello\n"))
;;;
;;; Runs in the child: requests arrive as frames on descriptor 0, answers leave on descriptor 3, stdout and stderr are
;;; free for printing (docs/worker-protocol.md). README.md beside this file says what handlers get and give.

(define-module (poolparty)
  #:use-module (ice-9 binary-ports)
  #:use-module (ice-9 match)
  #:use-module (rnrs bytevectors)
  #:use-module (srfi srfi-1)
  #:use-module (srfi srfi-9)
  #:use-module (srfi srfi-9 gnu)
  #:export (serve
            version
            make-request request?
            request-method request-uri request-path request-query request-headers request-header
            request-body request-remote-address
            response response?))

(define version "0.1.0")

(define http-request 0)
(define health-check-request 1)
(define stream-cancel 3)

(define http-response 0)
(define ready 1)
(define health-reply 2)
(define response-start 3)
(define response-chunk 4)
(define response-end 5)

(define max-frame-size #x7fffffff)
(define max-message-size 1000)          ; of a health reply: a line of the log
(define buffer-size 65536)              ; a pipe's usual capacity

;;; Requests and responses.

;; method, uri (absolute), path and query (as they were sent, percent-encoded; the query without "?", "" if there is
;; none) and remote-address ("host:port") are strings, headers is a list of pairs of strings, body a bytevector.
(define-record-type <request>
  (%make-request method uri path query headers body remote-address)
  request?
  (method request-method)
  (uri request-uri)
  (path request-path)
  (query request-query)
  (headers request-headers)
  (body request-body)
  (remote-address request-remote-address))

(set-record-type-printer! <request>
  (lambda (request port)
    (format port "#<request ~a ~a>" (request-method request) (request-uri request))))

;; Made by hand, to try a handler without a server.
(define* (make-request #:key (method "GET") (uri "http://localhost/") (headers '()) (body #vu8())
                       (remote-address "127.0.0.1:0"))
  (let* ((mark (string-index uri #\?))
         (target (if mark (string-take uri mark) uri))
         (scheme (string-contains target "://"))
         (slash (and scheme (string-index target #\/ (+ scheme 3)))))
    (%make-request method uri
                   (cond (slash (string-drop target slash)) (scheme "/") (else target))
                   (if mark (string-drop uri (+ mark 1)) "")
                   headers body remote-address)))

;; The value of a request's header field, by its name in any case; #f if there is none.
(define (request-header request name)
  (let ((field (find (lambda (field) (string-ci=? (car field) name)) (request-headers request))))
    (and field (cdr field))))

(define-record-type <response>
  (make-response status headers body)
  response?
  (status response-status)
  (headers response-headers)
  (body response-body))

;; headers is a list of pairs of a name and a string or, for a field that stands several times, a list of strings; body
;; is a string, a bytevector, or a procedure that is called with a port to write to.
(define* (response #:key (status 200) (headers '()) (body ""))
  (make-response status headers body))

(define text-plain '(("Content-Type" . "text/plain; charset=utf-8")))
(define octet-stream '(("Content-Type" . "application/octet-stream")))

(define failure (response #:status 500 #:headers text-plain #:body "internal server error\n"))

(define (problem message . arguments)
  (throw 'misc-error #f message arguments #f))

(define (->response value)
  (cond ((response? value) value)
        ((string? value) (response #:headers text-plain #:body value))
        ((bytevector? value) (response #:headers octet-stream #:body value))
        (else (problem "a handler gives a string, a bytevector or a response, not ~s" value))))

;;; Encoding: pieces of a message are bytevectors.

(define (uint number)
  (if (< number 128)
      (make-bytevector 1 number)
      (let loop ((number number) (bytes '()))
        (if (< number 128)
            (u8-list->bytevector (reverse (cons number bytes)))
            (loop (ash number -7) (cons (logior (logand number 127) 128) bytes))))))

(define (sized text)
  (let ((bytes (string->utf8 text)))
    (list (uint (bytevector-length bytes)) bytes)))

;; A frame from its message's pieces, in one write.
(define (send port . pieces)
  (let ((size (fold (lambda (piece sum) (+ (bytevector-length piece) sum)) 0 pieces)))
    (when (> size max-frame-size)
      (problem "a response of ~a bytes is larger than a frame can be (~a)" size max-frame-size))
    (let ((frame (make-bytevector (+ size 4))))
      (bytevector-u32-set! frame 0 size (endianness little))
      (fold (lambda (piece at)
              (bytevector-copy! piece 0 frame at (bytevector-length piece))
              (+ at (bytevector-length piece)))
            4 pieces)
      (catch 'system-error
        (lambda ()
          (put-bytevector port frame)
          (force-output port))
        (lambda arguments
          (if (= (system-error-errno arguments) EPIPE)
              (throw 'server-gone)      ; nobody is left to be answered
              (apply throw arguments)))))))

;; What precedes the body in both kinds of response: pieces.
(define (head tag status headers)
  (unless (and (exact-integer? status) (<= 200 status 599))
    (problem "a response's status is an integer from 200 to 599, not ~s" status))
  (unless (list? headers)
    (problem "a response's headers are a list of pairs, not ~s" headers))
  ;; A name may stand several times: that is one field with several values.
  (let ((fields (fold-right
                 (lambda (field fields)
                   (match field
                     (((? string? name) . values)
                      (let ((values (if (string? values) (list values) values)))
                        (unless (and (list? values) (every string? values))
                          (problem "the response header ~s is a string or a list of strings, not ~s"
                                   name (cdr field)))
                        (match (assoc name fields)
                          (#f (cons (cons name values) fields))
                          ((_ . more) (cons (cons name (append values more)) (alist-delete name fields))))))
                     (_ (problem "a response's header is a pair of a name and a value, not ~s" field))))
                 '() headers)))
    (cons* (make-bytevector 1 tag) (uint status) (uint (length fields))
           (append-map (match-lambda
                         ((name . values)
                          (append (sized name)
                                  (cons (uint (length values)) (append-map sized values)))))
                       fields))))

;;; Decoding. What breaks the framing could mean anything: it ends the process.

(define (broken what . arguments)
  (apply throw 'broken-frame what arguments))

(define (too-long)
  (broken "a request with a length that points beyond its frame"))

(define (decode-request payload)
  (define end (bytevector-length payload))
  (define at 1)
  (define (read-uint)
    ;; More than five bytes are a length beyond any frame.
    (let loop ((number 0) (shift 0))
      (unless (and (< at end) (< shift 35))
        (too-long))
      (let ((byte (bytevector-u8-ref payload at)))
        (set! at (+ at 1))
        (if (< byte 128)
            (logior number (ash byte shift))
            (loop (logior number (ash (logand byte 127) shift)) (+ shift 7))))))
  (define (read-data)
    (let ((size (read-uint)))
      (when (> (+ at size) end)
        (too-long))
      (let ((data (make-bytevector size)))
        (bytevector-copy! payload at data 0 size)
        (set! at (+ at size))
        data)))
  (define (read-string)
    (utf8->string (read-data)))
  (define (read-headers count)
    (let loop ((count count) (headers '()))
      (if (zero? count)
          (reverse headers)
          (let* ((name (read-string)) (value (read-string)))
            (loop (- count 1) (cons (cons name value) headers))))))
  (let* ((remote-address (read-string))
         (uri (read-string))
         (method (read-string))
         (headers (read-headers (read-uint)))
         (body (read-data)))
    (unless (= at end)
      (broken "a request whose lengths do not add up to its frame's"))
    (make-request #:method method #:uri uri #:headers headers #:body body #:remote-address remote-address)))

;; The next frame's payload; the end-of-file object at the pipe's end.
(define (next-payload port)
  (define (read-exactly size)
    (let ((bytes (get-bytevector-n port size)))
      (if (or (eof-object? bytes) (= (bytevector-length bytes) size)) bytes (eof-object))))
  (let ((size (read-exactly 4)))
    (if (eof-object? size)
        size
        (match (bytevector-u32-ref size 0 (endianness little))
          (0 (broken "an empty frame"))
          (size (read-exactly size))))))

;;; Answering.

;; What (thunk) gives. An error in it is written to stderr with its trace, and (on-error) called then with its text.
(define (call-reporting what thunk on-error)
  (define (passes? key)
    (memq key '(quit server-gone broken-frame stream-cancelled)))
  (catch #t
    thunk
    (lambda (key . arguments)
      (if (passes? key)
          (apply throw key arguments)
          (on-error (call-with-output-string
                      (lambda (port) (print-exception port #f key arguments))))))
    (lambda (key . arguments)
      (unless (passes? key)
        (false-if-exception
         (let ((port (current-error-port))
               (stack (make-stack #t 2)))
           (format port "poolparty: ~a failed~%" what)
           (when stack
             (display-backtrace stack port))
           (print-exception port #f key arguments)
           ;; The trace of a program that is not compiled names no file.
           (format port "  in the program ~a~%" (car (program-arguments)))
           (force-output port)))))))

;; A port for a body's writer: what is written there is given to (consume bytevector), when the buffer is full or
;; flushed with force-output.
(define (body-port consume)
  (let ((port (make-custom-binary-output-port
               "body"
               (lambda (bytes start count)
                 (unless (zero? count)
                   (let ((piece (make-bytevector count)))
                     (bytevector-copy! bytes start piece 0 count)
                     (consume piece)))
                 count)
               #f #f #f)))
    (set-port-encoding! port "UTF-8")
    (setvbuf port 'block buffer-size)
    port))

;; Two procedures about what stands in the pipe behind the request that runs: (cancelled?) is whether a StreamCancel
;; does, or nothing will come any more, and waits for nothing; (put-back) has what was read for that read once more.
(define (behind requests)
  (define pieces '())                   ; the last one first
  (define size 0)
  (define next 0)                       ; where the next frame begins that was not looked at
  (define (joined)
    (let ((all (make-bytevector size)))
      (fold (lambda (piece end)
              (let ((start (- end (bytevector-length piece))))
                (bytevector-copy! piece 0 all start (bytevector-length piece))
                start))
            size pieces)
      (set! pieces (list all))
      all))
  (define (ready?)
    (pair? (car (select (list requests) '() '() 0))))
  (define (cancelled?)
    (let read-more ()
      (if (ready?)
          (let ((piece (get-bytevector-some requests)))
            (or (eof-object? piece)
                (begin
                  (set! pieces (cons piece pieces))
                  (set! size (+ size (bytevector-length piece)))
                  (read-more))))
          (let look ()
            (and (>= size (+ next 5))
                 (let ((all (joined)))
                   (or (= (bytevector-u8-ref all (+ next 4)) stream-cancel)
                       (begin
                         (set! next (+ next 4 (bytevector-u32-ref all next (endianness little))))
                         (look)))))))))
  (define (put-back)
    (when (> size 0)
      (unget-bytevector requests (joined))))
  (values cancelled? put-back))

(define (answer port requests handler request streams? cancels?)
  (define started? #f)
  (define (send-whole status headers body)
    (apply send port (append (head http-response status headers)
                             (list (uint (bytevector-length body)) body))))
  (define (stream status headers write-body)
    (define start (head response-start status headers))
    (define-values (cancelled? put-back) (behind requests))
    (define (send-piece piece)
      ;; The first piece comes before the head: what fails until then can still be answered 500.
      (if started?
          (when (and cancels? (cancelled?))
            (throw 'stream-cancelled))
          (begin
            (set! started? #t)
            (apply send port start)))
      (send port (make-bytevector 1 response-chunk) (uint (bytevector-length piece)) piece))
    (define body (body-port send-piece))
    (dynamic-wind
      (lambda () #f)
      (lambda ()
        (catch 'stream-cancelled
          (lambda ()
            (write-body body)
            (force-output body))
          (lambda (key) #f)))
      put-back)
    (if started?
        (send port (make-bytevector 1 response-end))
        (send-whole status headers #vu8())))
  (define (collect write-body)
    (let* ((pieces '())
           (body (body-port (lambda (piece) (set! pieces (cons piece pieces))))))
      (write-body body)
      (force-output body)
      (call-with-values open-bytevector-output-port
        (lambda (all get)
          (for-each (lambda (piece) (put-bytevector all piece)) (reverse pieces))
          (get)))))
  (define (respond answer)
    (let ((status (response-status answer)) (headers (response-headers answer)) (body (response-body answer)))
      (cond ((string? body) (send-whole status headers (string->utf8 body)))
            ((bytevector? body) (send-whole status headers body))
            ((not (procedure? body))
             (problem "a response's body is a string, a bytevector or a procedure, not ~s" body))
            (streams? (stream status headers body))
            (else (send-whole status headers (collect body))))))
  (call-reporting
   (format #f "~a ~s" (request-method request) (request-uri request))
   (lambda () (respond (->response (handler request))))
   (lambda (message)
     (when started?
       (exit 1))                        ; half of an answer must not pass for a whole one
     (respond failure))))

;; As much of the text as is not too long in UTF-8.
(define (message-text text)
  (let loop ((text (string-trim-right text)))
    (if (> (bytevector-length (string->utf8 text)) max-message-size)
        (loop (string-take text (min max-message-size (- (string-length text) 1))))
        text)))

(define (check-health port health-check replies?)
  (define (reply ok message)
    (when replies?
      (apply send port (u8-list->bytevector (list health-reply ok)) (sized (message-text message)))))
  (call-reporting
   "the health check"
   (lambda ()
     (when health-check
       (health-check))
     (reply 1 ""))
   (lambda (message)
     (unless replies?
       (exit 1))
     (reply 0 message))))

;;; The process.

;; The two pipes as ports, (values requests answers), which no program that the handler starts inherits: it would find
;; our requests on its standard input and eat them. It finds /dev/null.
(define (take-pipes)
  (define (aside descriptor)
    (fcntl descriptor F_SETFD FD_CLOEXEC)
    descriptor)
  ;; Without a server, descriptor 3 may be a file of Guile's own.
  (unless (every (lambda (descriptor)
                   (eq? (false-if-exception (stat:type (stat descriptor))) 'fifo))
                 '(0 3))
    (error "descriptors 0 and 3 are not the server's pipes: this program is started by poolparty -- guile app.scm"))
  (let* ((answers (fdopen (aside 3) "wb"))
         (requests (fdopen (aside (dup->fdes 0)) "rb"))
         (nothing (open-fdes "/dev/null" O_RDONLY)))
    (dup2 nothing 0)
    (close-fdes nothing)
    (setvbuf requests 'block buffer-size)
    (setvbuf answers 'block buffer-size)
    (values requests answers)))

(define (noted-signal number)
  #f)

;; Answer requests with (handler request) until the server closes the pipe; then return.
;;
;; The handler gives a string (200, text/plain), a bytevector (200, application/octet-stream) or a response. An error in
;; it is written to stderr and answered 500; the process lives on. (health-check) is called now and then while no
;; request runs: if it raises an error, this process is unwell and will be replaced.
(define* (serve handler #:key (health-check #f))
  (call-with-values take-pipes
    (lambda (requests answers)
      (define offered (string-split (or (getenv "POOLPARTY_FEATURES") "") #\,))
      (define ready? (member "ready" offered))
      (define streams? (and ready? (member "stream" offered)))
      (define cancels? (and streams? (member "stream-cancel" offered)))
      (define features
        (append (if ready? (lset-intersection string=? '("health-reply" "stream") offered) '())
                (if cancels? '("stream-cancel") '())))
      (define replies? (member "health-reply" features))
      ;; A terminal's Ctrl-C is for the server, which then drains: this process ends when its pipe does. Procedures and
      ;; not SIG_IGN, because programs started from here would inherit that.
      (sigaction SIGINT noted-signal)
      (sigaction SIGPIPE noted-signal)
      (setvbuf (current-output-port) 'line)
      (catch 'server-gone
        (lambda ()
          (when ready?
            (apply send answers (u8-list->bytevector (list ready (length features))) (append-map sized features)))
          (catch 'broken-frame
            (lambda ()
              (let loop ((payload (next-payload requests)))
                (unless (eof-object? payload)
                  (let ((tag (bytevector-u8-ref payload 0)))
                    (cond ((= tag http-request)
                           (answer answers requests handler (decode-request payload) streams? cancels?))
                          ((and (= tag health-check-request) (= (bytevector-length payload) 1))
                           (check-health answers health-check replies?))
                          ((= tag stream-cancel)
                           #f)          ; of a stream that has ended meanwhile
                          (else
                           (broken "a request of a kind this library does not know (~a)" tag))))
                  (loop (next-payload requests)))))
            (lambda (key what . arguments)
              (format (current-error-port) "poolparty: ~a~%" (apply format #f what arguments))
              (exit 1))))
        (lambda (key)
          #f)))))
