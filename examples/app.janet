# A small application: poolparty --max-pool-size 8 -- janet examples/app.janet
#
# The same application as the others of this folder, in Janet.

(import poolparty)

(def form-page
  ``<!doctype html>
  <meta charset="utf-8">
  <title>A form</title>
  <form method="post" action="/form">
  <label>Your name <input name="name"></label>
  <button>Send</button>
  </form>

  ``)

(def page-template
  ``<!doctype html>
  <meta charset="utf-8">
  <title>A page</title>
  <h1>Hello, %s!</h1>
  <ul>
  %s</ul>

  ``)

(defn page [body]
  {:headers {"Content-Type" "text/html; charset=utf-8"} :body body})

(defn text [body]
  {:headers {"Content-Type" "text/plain; charset=utf-8"} :body body})

(defn escape
  "The text with what HTML gives a meaning replaced."
  [text]
  (->> text
       (string/replace-all "&" "&amp;")
       (string/replace-all "<" "&lt;")
       (string/replace-all ">" "&gt;")
       (string/replace-all "\"" "&quot;")
       (string/replace-all "'" "&#x27;")))

(def form-grammar
  (peg/compile
    ~{:hex (* "%" (/ (number (2 :h) 16) ,string/from-bytes))
      :space (/ "+" " ")
      :text (/ (any (+ :hex :space '(if-not (set "&=") 1))) ,string)
      :pair (group (* :text (? (* "=" :text))))
      :main (* :pair (any (* "&" :pair)) -1)}))

(defn decode
  "The fields of a form or a query, name=value&…, as a table; of a repeated one the first."
  [encoded]
  (def fields @{})
  (each [name value] (or (peg/match form-grammar encoded) [])
    (unless (in fields name)
      (put fields name (or value ""))))
  fields)

(defn target
  "The path and the query of a request's absolute uri."
  [request]
  (def uri (request :uri))
  (def start (string/find "/" uri (+ 3 (string/find "://" uri))))
  (def [path query] (string/split "?" (string/slice uri start) 0 2))
  [path (or query "")])

(defn quoted
  "A string as JSON has it."
  [text]
  (def out @"\"")
  (each byte text
    (cond
      (= byte (chr "\"")) (buffer/push out "\\\"")
      (= byte (chr "\\")) (buffer/push out "\\\\")
      (< byte 32) (buffer/push out (string/format "\\u%04x" byte))
      (buffer/push out byte)))
  (string (buffer/push out "\"")))

(defn object
  "A table of strings and tables as JSON, in the order of its names."
  [fields]
  (def pairs
    (seq [name :in (sorted (keys fields))]
      (def value (in fields name))
      (string (quoted name) ": " (if (dictionary? value) (object value) (quoted value)))))
  (string "{" (string/join pairs ", ") "}"))

(defn home [request path query]
  (text "Hello from Janet!\n"))

(defn as-json [request path query]
  {:headers {"Content-Type" "application/json"}
   :body (string (object {"method" (request :method) "path" path "query" query "headers" (request :headers)}) "\n")})

(defn form [request path query]
  (if (= (request :method) "POST")
    (let [name (get (decode (request :body)) "name" "nobody")]
      (page (string "<!doctype html>\n<meta charset=\"utf-8\">\n<p>Hello, " (escape name) "!</p>\n")))
    (page form-page)))

(defn template [request path query]
  (def name (get (decode query) "name" "nobody"))
  (def items (seq [number :in [1 2 3]] (string "<li>" number " times " number " is " (* number number) "</li>\n")))
  (page (string/format page-template (escape name) (string/join items))))

(defn upload [request path query]
  (text (string (length (request :body)) " bytes\n")))

(defn slow [request path query]
  (def milliseconds (scan-number (get (decode query) "ms" "100")))
  (os/sleep (/ milliseconds 1000))
  (text (string "waited " milliseconds " ms\n")))

(defn fail [request path query]
  (error "this page always fails"))

(def routes
  {"/" home
   "/json" as-json
   "/form" form
   "/page" template
   "/upload" upload
   "/slow" slow
   "/error" fail})

(defn handler [request]
  (def [path query] (target request))
  (if-let [route (routes path)]
    (route request path query)
    (merge (text "not found\n") {:status 404})))

(defn main [&]
  (poolparty/serve handler))
