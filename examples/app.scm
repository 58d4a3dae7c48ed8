;;; A small application: poolparty --max-pool-size 8 -- guile examples/app.scm
;;;
;;; The same as app.py, answer for answer.

(use-modules (poolparty)
             (rnrs bytevectors)
             (srfi srfi-1)
             ((web uri) #:select (uri-decode)))

(define form-page
  "<!doctype html>
<meta charset=\"utf-8\">
<title>A form</title>
<form method=\"post\" action=\"/form\">
<label>Your name <input name=\"name\"></label>
<button>Send</button>
</form>
")

(define page-template
  "<!doctype html>
<meta charset=\"utf-8\">
<title>A page</title>
<h1>Hello, ~a!</h1>
<ul>
~a</ul>
")

(define (page body)
  (response #:headers '(("Content-Type" . "text/html; charset=utf-8")) #:body body))

(define (escape text)
  (string-concatenate
   (map (lambda (character)
          (case character
            ((#\&) "&amp;") ((#\<) "&lt;") ((#\>) "&gt;") ((#\") "&quot;") ((#\') "&#x27;")
            (else (string character))))
        (string->list text))))

;; A field of a form or a query, name=value&...; of a repeated one the first.
(define (field encoded name default)
  (or (any (lambda (pair)
             (let* ((sign (or (string-index pair #\=) (string-length pair)))
                    (value (string-drop pair (min (+ sign 1) (string-length pair)))))
               (and (string=? (uri-decode (string-take pair sign)) name)
                    (uri-decode value))))
           (string-split encoded #\&))
      default))

;; A string, or an association list of strings and such lists, as JSON, in the order of the names.
(define (json value)
  (if (string? value)
      (string-append
       "\""
       (string-concatenate
        (map (lambda (character)
               (cond ((memv character '(#\" #\\)) (string #\\ character))
                     ((char<? character #\space)
                      (string-append "\\u" (string-pad (number->string (char->integer character) 16) 4 #\0)))
                     (else (string character))))
             (string->list value)))
       "\"")
      (let ((pairs (map (lambda (pair) (string-append (json (car pair)) ": " (json (cdr pair))))
                        (sort value (lambda (a b) (string<? (car a) (car b)))))))
        (string-append "{" (string-join pairs ", ") "}"))))

(define (home request)
  "Hello from Guile!\n")

(define (as-json request)
  (let ((facts `(("method" . ,(request-method request)) ("path" . ,(request-path request))
                 ("query" . ,(request-query request)) ("headers" . ,(request-headers request)))))
    (response #:headers '(("Content-Type" . "application/json")) #:body (string-append (json facts) "\n"))))

(define (form request)
  (if (string=? (request-method request) "POST")
      (let ((name (field (utf8->string (request-body request)) "name" "nobody")))
        (page (string-append "<!doctype html>\n<meta charset=\"utf-8\">\n<p>Hello, " (escape name) "!</p>\n")))
      (page form-page)))

(define (template request)
  (let ((name (field (request-query request) "name" "nobody"))
        (items (map (lambda (number) (format #f "<li>~a times ~a is ~a</li>\n" number number (* number number)))
                    '(1 2 3))))
    (page (format #f page-template (escape name) (string-concatenate items)))))

(define (upload request)
  (format #f "~a bytes\n" (bytevector-length (request-body request))))

(define (slow request)
  (let ((milliseconds (string->number (field (request-query request) "ms" "100"))))
    (usleep (* milliseconds 1000))
    (format #f "waited ~a ms\n" milliseconds)))

(define (fail request)
  (error "this page always fails"))

(define routes
  `(("/" . ,home) ("/json" . ,as-json) ("/form" . ,form) ("/page" . ,template) ("/upload" . ,upload)
    ("/slow" . ,slow) ("/error" . ,fail)))

(define (handler request)
  (let ((route (assoc-ref routes (request-path request))))
    (if route
        (route request)
        (response #:status 404
                  #:headers '(("Content-Type" . "text/plain; charset=utf-8"))
                  #:body "not found\n"))))

(serve handler)
