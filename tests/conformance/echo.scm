;;; The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`.

(use-modules (poolparty) (ice-9 textual-ports))

(define (write-pieces port)
  (for-each (lambda (piece)
              (put-string port piece)
              (force-output port))
            '("one\n" "two\n" "three\n")))

(define (write-more port)
  (put-string port "more\n")
  (force-output port)
  (write-more port))

(define (echo request)
  (response
   #:headers `(("Echo-Method" . ,(request-method request))
               ("Echo-Uri" . ,(request-uri request))
               ("Echo-Remote-Address" . ,(request-remote-address request))
               ("Echo-Check" . ,(or (request-header request "x-check") ""))
               ("Echo-Headers" . ,(map (lambda (field)
                                         (string-append (car field) ": " (cdr field)))
                                       (request-headers request))))
   #:body (request-body request)))

(define (handler request)
  (let ((path (request-path request)))
    (cond ((string=? path "/fail") (error "this page always fails"))
          ((string=? path "/stream") (response #:body write-pieces))
          ((string=? path "/endless") (response #:body write-more))
          (else
           (when (string=? path "/print") (display "printed\n"))
           (echo request)))))

(serve handler)
