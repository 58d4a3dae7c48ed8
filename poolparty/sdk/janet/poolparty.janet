# The worker library for Janet programs, in Janet alone:
#
#     (import poolparty)
#     (defn handler [request] {:status 200 :headers {"Content-Type" "text/plain"} :body "hello\n"})
#     (defn main [&] (poolparty/serve handler))
#
# Runs in the child: requests arrive as frames on stdin, answers leave on descriptor 3, stdout and stderr are free
# for printing (docs/worker-protocol.md). The programming interface is that of the original's library, so that its
# programs run unmodified; the differences are noted at serve.
#
# The request path is written for Janet's interpreter: one call of a C function costs as much as ten of its own
# instructions, and a fiber as much as twenty calls.

(def- http-request 0)
(def- health-check-request 1)

(def- http-response "\x00")
(def- ready "\x01")
(def- health-reply "\x02")

(def- large 1000000)

(defn- push-uint
  "Append n as BARE's uint."
  [buf n]
  (var n n)
  (while (>= n 128)
    (buffer/push-byte buf (+ 128 (% n 128)))
    (set n (div n 128)))
  (buffer/push-byte buf n))

(defn- push-string [buf bytes]
  (push-uint buf (length bytes))
  (buffer/push-string buf bytes))

(defn- read-uint
  "The uint at `at`, and the place behind it."
  [buf at]
  (var n 0)
  (var scale 1)
  (var at at)
  (var byte (in buf at))
  (while (>= byte 128)
    (+= n (* scale (- byte 128)))
    (*= scale 128)
    (++ at)
    (set byte (in buf at)))
  [(+ n (* scale byte)) (+ at 1)])

# Nearly every length is one byte; a call of read-uint for each would double the time a request takes to decode.
(defmacro- read-bytes
  "Set `at` behind the sized bytes that stand there, and give what `slice` makes of them."
  [slice buf at]
  (with-syms [size start]
    ~(do
       (var ,size (in ,buf ,at))
       (var ,start (+ ,at 1))
       (when (>= ,size 128)
         (def [size start] (read-uint ,buf ,at))
         (set ,size size)
         (set ,start start))
       (set ,at (+ ,start ,size))
       (,slice ,buf ,start ,at))))

(defn- read-http-request
  "The request table from a frame, whose tag stands before `at`."
  [buf at]
  (var at at)
  (def remote-address (read-bytes string/slice buf at))
  (def uri (read-bytes string/slice buf at))
  (def method (read-bytes string/slice buf at))
  (var count (in buf at))
  (if (< count 128)
    (++ at)
    (let [[n behind] (read-uint buf at)]
      (set count n)
      (set at behind)))
  (def headers @{})
  (while (> count 0)
    (def name (read-bytes string/slice buf at))
    (put headers name (read-bytes string/slice buf at))
    (-- count))
  @{:remote-address remote-address
    :uri uri
    :method method
    :headers headers
    :body (read-bytes buffer/slice buf at)})

(defn- push-header
  "Append one header; true if its value can never change."
  [buf name value]
  (unless (bytes? name)
    (errorf "a response header's name is a string, got %v" name))
  (cond
    (bytes? value)
    (let [name-size (length name)
          value-size (length value)]
      (if (and (< name-size 128) (< value-size 128))
        (buffer/push buf name-size name 1 value-size value)
        (do
          (push-string buf name)
          (buffer/push-byte buf 1)
          (push-string buf value)))
      (string? value))
    (indexed? value)
    (do
      (push-string buf name)
      (push-uint buf (length value))
      (each item value
        (unless (bytes? item)
          (errorf "the response header %v is a string or a list of strings, got %v" name value))
        (push-string buf item))
      (and (tuple? value) (all string? value)))
    (errorf "the response header %v is a string or a list of strings, got %v" name value)))

# Headers that are a struct of strings are most often a constant of the program, and can never change: they are
# encoded once. Programs that build such structs by the request fill the table; it is emptied then.
(def- constant-headers @{})
(def- constant-headers-limit 256)

(defn- push-headers [buf headers]
  (if-let [encoded (in constant-headers headers)]
    (buffer/push-string buf encoded)
    (do
      (def start (length buf))
      (var constant (struct? headers))
      (push-uint buf (length headers))
      (eachk name headers
        (unless (and (push-header buf name (in headers name)) (string? name))
          (set constant false)))
      (when constant
        (when (>= (length constant-headers) constant-headers-limit)
          (table/clear constant-headers))
        (put constant-headers headers (string/slice buf start))))))

(defn- push-head
  "Append to buf all of a response but its body, and give the body."
  [buf response]
  (unless (or (dictionary? response) (nil? response))
    (errorf "a handler returns a table or struct, got %v" response))
  (def status (get response :status))
  (def headers (get response :headers))
  (def body (get response :body ""))
  (cond
    (or (= status 200) (not (number? status))) (buffer/push-string buf "\x00\xC8\x01")
    (and (int? status) (<= 200 status 599)) (do (buffer/push-byte buf 0) (push-uint buf status))
    (errorf "a response's :status is an integer from 200 to 599, got %v" status))
  (cond
    (nil? headers) (buffer/push-byte buf 0)
    (dictionary? headers) (push-headers buf headers)
    (errorf "a response's :headers are a table or struct, got %v" headers))
  (unless (bytes? body)
    (errorf "a response's :body is a string or buffer, got %v" body))
  (push-uint buf (length body))
  body)

(def- failure
  {:status 500
   :headers {"Content-Type" "text/plain; charset=utf-8"}
   :body "internal server error\n"})

(defn- features-offered []
  (string/split "," (os/getenv "POOLPARTY_FEATURES" "")))

(defn- open-outf []
  # Janet has no fdopen. Opening the descriptor's own name gives a second way into the same pipe.
  (def [ok outf] (protect (file/open "/dev/fd/3" :wbn)))
  (unless ok
    (error "unable to open descriptor 3: this program is started by the server, poolparty -- janet app.janet"))
  outf)

(defn serve
  ``Answer requests with (handler request) until the server closes the pipe; then return.

  The request is a table @{:remote-address :uri :method :headers :body}: strings, headers a table of strings, the
  body a buffer. The handler returns a table or struct with any of :status (200), :headers (a table or struct;
  each value is a string or, for a field that stands several times, a list of strings) and :body (any bytes).

  (health-check) is called now and then while no request runs; if it raises an error, this process is unwell and
  will be replaced.

  Two things differ from the original's library. A handler that raises an error, or returns what is no response,
  costs its request (500, with the trace on stderr) and not the process. And the end of the pipe is no error.``
  [handler &keys {:inf inf :outf outf :health-check health-check}]
  (default inf stdin)
  (default outf (open-outf))
  (default health-check (fn [] nil))
  (when (= outf (dyn :out))
    (error "server outf should not be the same as :out, hint: (setdyn :out stderr)"))
  (def offered (features-offered))
  (def says-ready (truthy? (index-of "ready" offered)))
  (def replies (and says-ready (truthy? (index-of "health-reply" offered))))
  (def buf @"")
  (def size-buf @"")
  (def head @"")

  (defn write [body]
    (buffer/clear size-buf)
    (buffer/push-word size-buf (+ (length head) (length body)))
    (file/write outf size-buf head body)
    (file/flush outf))

  (defn respond [response]
    (buffer/clear head)
    (write (push-head head response)))

  (defn reply [ok message]
    (buffer/clear head)
    (buffer/push head health-reply (if ok 1 0))
    (push-string head message)
    (write ""))

  (defn check-health []
    (if replies
      (let [[ok err] (protect (health-check))]
        (unless ok (eprintf "poolparty: the health check failed: %v" err))
        (reply ok (if ok "" (string err))))
      (health-check)))

  # The request whose handler runs: an error now is one to be answered. The loop runs in one fiber, which an error
  # ends, and is started again after it; a fiber for each request would cost more than decoding it. What waits in
  # the pipe is not touched by this. No closure may be made in the loop: Janet would make a function of its body.
  (var current nil)

  (defn run []
    (forever
      (buffer/clear buf)
      (unless (and (file/read inf 4 buf) (= (length buf) 4))
        (break))
      (def size (+ (in buf 0) (* 256 (+ (in buf 1) (* 256 (+ (in buf 2) (* 256 (in buf 3))))))))
      (unless (and (file/read inf size buf) (= (length buf) (+ size 4)))
        (break))
      (def tag (in buf 4))
      (cond
        (= tag http-request)
        (let [request (read-http-request buf 5)]
          (set current request)
          (buffer/clear head)
          (def body (push-head head (handler request)))
          (set current nil)
          (write body)
          # Printed lines belong in the log now, not when stdout's buffer is full.
          (flush)
          (when (> size large)
            (buffer/clear buf)
            (buffer/trim buf)))

        (= tag health-check-request)
        (check-health)

        (errorf "poolparty: a request of a kind this library does not know (%d)" tag))))

  (when says-ready
    (buffer/push head ready (if replies 1 0))
    (when replies (push-string head "health-reply"))
    (write ""))
  (var running true)
  (while running
    (try
      (do (run) (set running false))
      ([err fiber]
        (def request current)
        (set current nil)
        (if request
          (do
            (eprintf "poolparty: %s %q failed" (request :method) (request :uri))
            (debug/stacktrace fiber (if (bytes? err) err (string/format "%q" err)) "")
            (eflush)
            (respond failure)
            (flush))
          (propagate err fiber))))))
