;;; What test_every_library.py asks of a library; the same in every language.

(use-modules (poolparty) (ice-9 binary-ports) (ice-9 popen) (ice-9 textual-ports) (rnrs bytevectors) (srfi srfi-1))

(define (health-check)
  (let ((health (getenv "TEST_HEALTH")))
    (cond ((equal? health "fail") (error "no database"))
          ((equal? health "long") (error (make-string 5000 #\ü))))))

(define (write-pieces request port)
  (for-each (lambda (piece)
              (if (string? piece) (put-string port piece) (put-bytevector port piece))
              (force-output port))
            (list "one\n" "" #vu8(255 10) "grün\n"))
  (when (string=? (request-query request) "fail")
    (error "this one fails")))

(define (write-more port)
  (dynamic-wind
    (lambda () #f)
    (lambda ()
      (let loop ()
        (put-string port "more\n")
        (force-output port)
        (loop)))
    (lambda () (display "closed\n"))))

(define (octets size)
  (let ((bytes (make-bytevector size)))
    (do ((n 0 (+ n 1))) ((= n size) bytes)
      (bytevector-u8-set! bytes n (logand n 255)))))

(define routes
  `(("/echo"
     . ,(lambda (request)
          (response #:status 201
                    #:headers `(("Method" . ,(request-method request)) ("Uri" . ,(request-uri request))
                                ("Path" . ,(request-path request)) ("Query" . ,(request-query request))
                                ("Remote-Address" . ,(request-remote-address request))
                                ("Headers" . ,(number->string (length (request-headers request)))))
                    #:body (request-body request))))
    ("/header"
     . ,(lambda (request)
          (or (request-header request (request-query request))
              (response #:status 404 #:body "none"))))
    ("/text" . ,(lambda (request) "grün\n"))
    ("/octets" . ,(lambda (request) (octets (string->number (request-query request)))))
    ("/headers"
     . ,(lambda (request)
          (response #:headers `(("Set-Cookie" . "a=1") ("X-Long" . ,(make-string 300 #\v)) ("Set-Cookie" . "b=2")))))
    ("/many-headers"
     . ,(lambda (request)
          (response #:headers (map (lambda (number)
                                     (cons (format #f "X-~a" number) (number->string number)))
                                   (iota 300)))))
    ("/empty" . ,(lambda (request) (response #:status 204)))
    ("/fail" . ,(lambda (request) (error "this one fails")))
    ("/bad-status" . ,(lambda (request) (response #:status 99)))
    ("/bad-header" . ,(lambda (request) (response #:headers '(("A" . 7)))))
    ("/bad-body" . ,(lambda (request) (response #:body 7)))
    ("/bad-answer" . ,(lambda (request) #f))
    ("/say" . ,(lambda (request) (format #t "seen ~a~%" (request-path request)) ""))
    ("/program"
     . ,(lambda (request)
          (let* ((port (open-input-pipe "cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open"))
                 (said (get-string-all port)))
            (close-pipe port)
            said)))
    ("/leave" . ,(lambda (request) (exit 7)))
    ("/stream"
     . ,(lambda (request) (response #:headers '(("Content-Type" . "text/plain")) #:body (lambda (port) (write-pieces request port)))))
    ("/endless" . ,(lambda (request) (response #:body write-more)))
    ("/stream-nothing" . ,(lambda (request) (response #:body (lambda (port) #f))))
    ("/stream-fail-first" . ,(lambda (request) (response #:body (lambda (port) (error "this one fails")))))))

(serve (lambda (request) ((assoc-ref routes (request-path request)) request)) #:health-check health-check)
