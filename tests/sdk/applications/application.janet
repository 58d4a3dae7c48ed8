# What test_every_library.py asks of a library; the same in every language.

(import poolparty)

(defn health-check []
  (case (os/getenv "TEST_HEALTH")
    "fail" (error "no database")
    "long" (error (string/repeat "ü" 5000))))

(defn echo [request path query]
  {:status 201
   :headers {"Method" (request :method) "Uri" (request :uri) "Path" path "Query" query
             "Remote-Address" (request :remote-address) "Headers" (string (length (request :headers)))}
   :body (request :body)})

# The original's interface has headers as a table, whose names are as the server writes them.
(defn header [request path query]
  (def wanted (string/ascii-lower query))
  (var found nil)
  (eachp [name value] (request :headers)
    (when (= (string/ascii-lower name) wanted) (set found value)))
  (if found {:body found} {:status 404 :body "none"}))

(defn text [request path query]
  {:headers {"Content-Type" "text/plain; charset=utf-8"} :body "grün\n"})

(defn octets [request path query]
  (def all (buffer ;(map string/from-bytes (range 256))))
  {:headers {"Content-Type" "application/octet-stream"} :body (string/repeat all (/ (scan-number query) 256))})

(defn headers [request path query]
  {:headers {"Set-Cookie" ["a=1" "b=2"] "X-Long" (string/repeat "v" 300)} :body ""})

(defn many-headers [request path query]
  {:headers (tabseq [number :range [0 300]] (string "X-" number) (string number))})

(defn program [request path query]
  (def process
    (os/spawn ["sh" "-c" "cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open"] :p {:out :pipe}))
  (def said (:read (process :out) :all))
  (os/proc-wait process)
  {:body said})

(defn stream [request path query]
  {:headers {"Content-Type" "text/plain"}
   :body (coro
           (each piece ["one\n" "" @"\xff\n" "grün\n"] (yield piece))
           (when (= query "fail") (error "this one fails")))})

(defn endless [&]
  {:body (coro (defer (print "closed") (forever (yield "more\n"))))})

(def routes
  {"/echo" echo
   "/header" header
   "/text" text
   "/octets" octets
   "/headers" headers
   "/many-headers" many-headers
   "/empty" (fn [&] {:status 204})
   "/fail" (fn [&] (error "this one fails"))
   "/bad-status" (fn [&] {:status 99})
   "/bad-header" (fn [&] {:headers {"A" {}}})
   "/bad-body" (fn [&] {:body 7})
   "/bad-answer" (fn [&] 7)
   "/say" (fn [request path query] (print "seen " path) {})
   "/program" program
   "/stream" stream
   "/endless" endless
   "/stream-nothing" (fn [&] {:body (coro)})
   "/stream-fail-first" (fn [&] {:body (coro (error "this one fails"))})
   "/leave" (fn [&] (os/exit 7))})

(defn handler [request]
  (def uri (request :uri))
  (def start (string/find "/" uri (+ 3 (string/find "://" uri))))
  (def [path query] (string/split "?" (if start (string/slice uri start) "/") 0 2))
  ((routes path) request path (or query "")))

(defn main [&]
  (poolparty/serve handler :health-check health-check))
