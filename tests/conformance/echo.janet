# The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`.

(import poolparty)

(defn handler [request]
  (def uri (request :uri))
  (defn asked [page] (string/has-suffix? page uri))
  (when (asked "/fail") (error "this page always fails"))
  (when (asked "/print") (print "printed"))
  (cond
    (asked "/endless")
    {:body (coro (forever (yield "more\n")))}

    (asked "/stream")
    {:body (coro (each word ["one" "two" "three"] (yield (string word "\n"))))}
    {:headers {"Echo-Method" (request :method)
               "Echo-Uri" uri
               "Echo-Remote-Address" (request :remote-address)
               "Echo-Check" (get-in request [:headers "X-Check"] "")
               "Echo-Headers" (seq [[name value] :pairs (request :headers)] (string name ": " value))}
     :body (request :body)}))

(defn main [&]
  (poolparty/serve handler))
