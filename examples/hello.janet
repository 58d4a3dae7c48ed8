# The smallest application: poolparty -- janet examples/hello.janet

(import poolparty)

(defn handler [request]
  {:headers {"Content-Type" "text/plain; charset=utf-8"} :body "hello\n"})

(defn main [&]
  (poolparty/serve handler))
