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
# The request path is written for Janet's interpreter, where a call of a C function costs as much as ten
# instructions, a closure or fiber as much as thirty, and what is allocated has to be collected.

(def version "0.1.0")

(def- http-request 0)
(def- health-check-request 1)
(def- http-request-file 2)
(def- stream-cancel 3)

(def- http-response 0)
(def- ready 1)
(def- health-reply 2)
(def- response-start 3)
(def- response-chunk 4)
(def- response-end "\x01\x00\x00\x00\x05")
(def- stream-cancel-frame "\x01\x00\x00\x00\x03")

# A health reply's message: a line of the log.
(def- message-limit 1000)

# A frame beyond this size is read in two parts: so much, in which its head stands, and then the rest of the body into a
# buffer of its own. One of 1 MiB costs half as much as if all of it were read and the body copied out.
(def- first-part 65536)

# A buffer that a head of unusual size has made larger than this is given back after the request.
(def- kept-buffer-limit 1000000)

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

(defn- frame-size [buf]
  (+ (in buf 0) (* 256 (+ (in buf 1) (* 256 (+ (in buf 2) (* 256 (in buf 3))))))))

# Nearly every length is one byte; to call read-uint for each would double the time a request takes to decode.
(defmacro- read-bytes
  "Move the variable `at` behind the sized bytes that stand there, and give what `slice` makes of them."
  [slice buf at]
  (with-syms [size start]
    ~(do
       (var ,size (in ,buf ,at))
       (var ,start (+ ,at 1))
       (when (>= ,size 128)
         (def [long-size behind] (read-uint ,buf ,at))
         (set ,size long-size)
         (set ,start behind))
       (set ,at (+ ,start ,size))
       (,slice ,buf ,start ,at))))

# A copy of a table that has its keys already costs half of what a new one does.
(def- blank-request @{:remote-address "" :uri "" :method "" :headers false :body false})

# Clients repeat themselves: of requests without a body, the headers by the bytes they came as, once these have come
# twice (true: they have come once). A request with a browser's thirteen takes 6 us so, and 9 us if they are decoded.
# It is emptied when it is full.
(def- known @{})
(def- known-limit 256)
(def- known-size-limit 2048)

(defmacro- read-headers
  "Move the variable `at` behind the headers that stand there, and give them as a table."
  [buf at]
  (with-syms [count headers name n behind]
    ~(do
       (var ,count (in ,buf ,at))
       (if (< ,count 128)
         (++ ,at)
         (let [[,n ,behind] (read-uint ,buf ,at)]
           (set ,count ,n)
           (set ,at ,behind)))
       (def ,headers @{})
       (while (> ,count 0)
         (def ,name (read-bytes string/slice ,buf ,at))
         (put ,headers ,name (read-bytes string/slice ,buf ,at))
         (-- ,count))
       ,headers)))

(defn- learn
  "The headers that `rest`, the end of a frame, begins with, and how long they are. They are remembered the second time."
  [rest]
  (var at 0)
  (def headers (read-headers rest at))
  (when (= (+ at 1) (length rest))
    (if (in known rest)
      (put known rest (table/clone headers))
      (do
        (when (>= (length known) known-limit)
          (table/clear known))
        (put known rest true))))
  [headers at])

(defn- read-http-request
  ``The request table from a frame, whose tag stands before `start`. If `inf` is given, the last `missing` bytes of
  the body are still to be read from it.``
  [buf start &opt inf missing]
  (var at start)
  (def end (length buf))
  (def request (table/clone blank-request))
  (put request :remote-address (read-bytes string/slice buf at))
  (put request :uri (read-bytes string/slice buf at))
  (put request :method (read-bytes string/slice buf at))
  # A last byte of 0 is mostly the size of an empty body; whatever it is, the same bytes mean the same. One or two
  # headers are not worth it.
  (def rest
    (if (and (> (in buf at) 2) (= 0 (in buf (- end 1))) (nil? inf) (< (- end at) known-size-limit))
      (string/slice buf at)))
  (if (nil? rest)
    (put request :headers (read-headers buf at))
    (let [before (in known rest)]
      (if (table? before)
        (do
          (put request :headers (table/clone before))
          (set at (- end 1)))
        (let [[headers size] (learn rest)]
          (put request :headers headers)
          (+= at size)))))
  (if (nil? inf)
    (do
      (put request :body (read-bytes buffer/slice buf at))
      (unless (= at end)
        (error "poolparty: bytes stand behind a request")))
    (let [[size behind] (read-uint buf at)
          body (buffer/new size)]
      (buffer/blit body buf 0 behind)
      (file/read inf missing body)
      (unless (= (length body) size)
        (error "poolparty: the pipe ended in a request's body"))
      (put request :body body)))
  request)

(defn- read-file-request
  "The request table from the frame of a request whose body is in a file."
  [buf start]
  (var at start)
  (def request (table/clone blank-request))
  (put request :remote-address (read-bytes string/slice buf at))
  (put request :uri (read-bytes string/slice buf at))
  (put request :method (read-bytes string/slice buf at))
  (put request :headers (read-headers buf at))
  (put request :body nil)
  (put request :body-file (read-bytes string/slice buf at))
  (def [size behind] (read-uint buf at))
  (put request :body-size size)
  (unless (= behind (length buf))
    (error "poolparty: bytes stand behind a request"))
  request)

(defn- head-is-in?
  "Whether the buffer, which ends before its frame does, holds all before the body's bytes."
  [buf]
  (def end (length buf))
  (var at 5)
  (var strings 3)
  (var counted false)
  (var whole true)
  (while (and whole (or (> strings 0) (not counted)))
    # No uint before the body has more than five bytes.
    (if (> (+ at 5) end)
      (set whole false)
      (let [[n behind] (read-uint buf at)]
        (if (> strings 0)
          (do (set at (+ behind n)) (-- strings))
          (do (set at behind) (set strings (* 2 n)) (set counted true))))))
  (and whole (<= (+ at 5) end)))

(defn- push-header
  "Append one header."
  [buf name value]
  (unless (bytes? name)
    (errorf "a response header's name is a string, got %v" name))
  (def values (if (bytes? value) [value] value))
  (unless (and (indexed? values) (all bytes? values))
    (errorf "the response header %v is a string or a list of strings, got %v" name value))
  (push-string buf name)
  (push-uint buf (length values))
  (each each-value values
    (push-string buf each-value)))

(defn- push-headers [buf headers]
  (push-uint buf (length headers))
  (eachk name headers
    (def value (in headers name))
    (if (and (string? name) (string? value) (< (length name) 128) (< (length value) 128))
      (buffer/push buf (length name) name 1 (length value) value)
      (push-header buf name value))))

(defn- immutable? [value]
  (or (string? value)
      (and (tuple? value) (all string? value))))

# What stands before the body of a 200 whose headers are an immutable struct, by that struct. It is most often a
# constant of the program. A program that builds such structs for each request fills the table; it is then emptied.
(def- heads @{})
(def- heads-limit 256)
(def- head-without-headers "\x00\xC8\x01\x00")

(defn- make-head
  "All of a response before its body."
  [status headers]
  (def buf (buffer/new 256))
  (buffer/push-byte buf http-response)
  (cond
    (not (number? status)) (push-uint buf 200)
    (and (int? status) (<= 200 status 599)) (push-uint buf status)
    (errorf "a response's :status is an integer from 200 to 599, got %v" status))
  (cond
    (nil? headers) (buffer/push-byte buf 0)
    (dictionary? headers) (push-headers buf headers)
    (errorf "a response's :headers are a table or struct, got %v" headers))
  (when (and (or (= status 200) (not (number? status)))
             (struct? headers)
             (all immutable? (keys headers))
             (all immutable? (values headers)))
    (when (>= (length heads) heads-limit)
      (table/clear heads))
    (put heads headers (string buf)))
  buf)

(defn- uint-length [n]
  (cond
    (< n 0x80) 1
    (< n 0x4000) 2
    (< n 0x200000) 3
    (< n 0x10000000) 4
    5))

# What serve makes of a body that comes in pieces: bytes, or nil if it has sent them.
(var- gather nil)

(defn- encode
  "Fill `out` with a response's frame up to its body, and give the body. One in pieces may have been sent then, and only
  its end stand in `out`."
  [out response]
  (def status (get response :status))
  (def headers (get response :headers))
  (var body (get response :body))
  (when (nil? body)
    (unless (or (dictionary? response) (nil? response))
      (errorf "a handler returns a table or struct, got %v" response))
    (set body ""))
  (unless (bytes? body)
    (unless (or (fiber? body) (indexed? body))
      (errorf "a response's :body is a string, a buffer or a fiber, got %v" body))
    (set body (gather status headers body))
    (when (nil? body)
      (break "")))
  (def head
    (if (or (= status 200) (nil? status))
      (if (nil? headers) head-without-headers (or (in heads headers) (make-head status headers)))
      (make-head status headers)))
  (def size (length body))
  (buffer/clear out)
  (if (< size 0x80)
    (do
      (buffer/push-word out (+ (length head) 1 size))
      (buffer/push out head size))
    (do
      (buffer/push-word out (+ (length head) (uint-length size) size))
      (buffer/push-string out head)
      (push-uint out size)))
  body)

(def- failure
  {:status 500
   :headers {"Content-Type" "text/plain; charset=utf-8"}
   :body "internal server error\n"})

# Calls of the C library, for what Janet cannot do with a descriptor: (libc "dup2" :int :int) is a function, or nil
# where Janet was built without its foreign function interface.
(compif (dyn 'ffi/native)
  (defn- libc [name & types]
    (def [ok call]
      (protect
        (let [function (ffi/lookup (ffi/native) name)
              signature (ffi/signature :default :int ;types)]
          (fn [& arguments] (ffi/call function signature ;arguments)))))
    (if ok call))
  (defn- libc [&] nil))

(def- f-getfd 1)
(def- f-setfd 2)
(def- f-setfl 4)
(def- o-nonblock 8r4000)
(def- pollhup 8r20)
(def- fd-cloexec 1)
(def- o-rdonly 0)

(defn- open-inf
  ``The requests' pipe. Programs that the handler starts would inherit descriptor 0 and eat our requests: so where
  we can, the pipe is opened once more (Janet marks what it opens as not to be inherited) and descriptor 0 becomes
  /dev/null. Its descriptor is given, too, which is nil if it is not known.``
  []
  (def [open dup2 close] [(libc "open" :string :int) (libc "dup2" :int :int) (libc "close" :int)])
  (if (and open dup2 close)
    (do
      (def null (open "/dev/null" o-rdonly))
      (def free (open "/dev/null" o-rdonly)) # the number that the next file to be opened gets
      (close free)
      (def [opened inf] (protect (file/open "/dev/fd/0" :rbn)))
      (when opened
        (dup2 null 0))
      (close null)
      (if opened [inf free] [stdin nil]))
    [stdin nil]))

(defn- blocking-switch
  ``A function that has reads of this descriptor wait (true) or not (false); nil where that cannot be. The flag's number
  is another on a few machines.``
  [descriptor]
  (def fcntl (libc "fcntl" :int :int :int))
  (when (and descriptor fcntl (index-of (os/arch) [:x64 :x86 :aarch64 :arm :riscv64 :riscv32]) (= (os/which) :linux))
    (fn [waits] (fcntl descriptor f-setfl (if waits 0 o-nonblock)))))

(defn- end-finder
  ``A function that tells whether nothing is left in the pipe of this descriptor and nothing will come any more; nil
  where that cannot be. Once the C library has found nothing to read for the moment, it gives out an error at the pipe's
  end, too.``
  [descriptor]
  (def poll (libc "poll" :ptr :ulong :int))
  (defn ended? []
    (def asked (buffer/push-word @"" descriptor 0)) # a struct pollfd, which asks for no event
    (poll asked 1 0)
    (= pollhup (in asked 6)))
  (def [works ended] (if (and descriptor poll) (protect (ended?)) [false]))
  (if (and works (not ended)) ended?))

(defn- open-outf
  ``The answers' pipe. Janet has no fdopen; to open the descriptor's own name gives a second way into the same
  pipe. The pipe's permissions are asked then: the server gives it to the user that the child runs as.``
  []
  (def fcntl (libc "fcntl" :int :int :int))
  # Without a descriptor 3 from the server, Janet's event loop has taken the number. What has come through exec does
  # not have this mark.
  (def ours (or (nil? fcntl) (= 0 (fcntl 3 f-getfd 0))))
  (def [opened outf] (if ours (protect (file/open "/dev/fd/3" :wbn)) [false "it is not open"]))
  (unless opened
    (errorf "unable to open descriptor 3 (%s): this program is started by the server, poolparty -- janet app.janet"
            outf))
  (when fcntl
    (fcntl 3 f-setfd fd-cloexec))
  outf)

# A terminal's Ctrl-C is for the server, which then drains: this process ends when its pipe does. A handler that
# programs started from here do not inherit; it is never called, since the event loop does not run.
(compif (dyn 'os/sigaction)
  (defn- ignore-interrupt [] (protect (os/sigaction :int (fn [&]))))
  (defn- ignore-interrupt []))

(defn serve
  ``Answer requests with (handler request) until the server closes the pipe; then return.

  The request is a table @{:remote-address :uri :method :headers :body}: strings, headers a table of strings, the
  body a buffer. The handler returns a table or struct with any of :status (200), :headers (a table or struct;
  each value is a string or, for a field that stands several times, a list of strings) and :body (any bytes).

  A body may be a fiber that yields bytes, (coro (yield "one\n") ...) say, or an array or tuple of bytes. Where the
  server takes responses in pieces, each is sent when it is there; otherwise they are collected. A fiber whose client
  is found to have left is cancelled: what stands in its `defer` is done.

  With :body-files true a large body may stay in a file: the request then has :body-file, its path, which is there
  until the answer, and :body-size instead of :body.

  (health-check) is called now and then while no request runs; if it raises an error, this process is unwell and
  will be replaced.

  Two things differ from the original's library. A handler that raises an error, or returns what is no response,
  costs its request (500, with the trace on stderr) and not the process. And the end of the pipe is no error.``
  [handler &keys {:inf inf :outf outf :health-check health-check :body-files body-files}]
  (default outf (open-outf))
  (def [opened-inf descriptor] (if inf [inf nil] (open-inf)))
  (default inf opened-inf)
  (default health-check (fn [] nil))
  (when (= outf (dyn :out))
    (error "server outf should not be the same as :out, hint: (setdyn :out stderr)"))
  (def offered (string/split "," (os/getenv "POOLPARTY_FEATURES" "")))
  (def says-ready (truthy? (index-of "ready" offered)))
  (def replies (and says-ready (truthy? (index-of "health-reply" offered))))
  (def streams (and says-ready (truthy? (index-of "stream" offered))))
  (def cancels (and streams (index-of "stream-cancel" offered)))
  (def requests-have-ended? (if cancels (end-finder descriptor)))
  (def waits-for-requests (if requests-have-ended? (blocking-switch descriptor)))
  (ignore-interrupt)
  (def buf @"")
  (def out @"")

  (defn write-message [tag & parts]
    (def message (buffer/push @"" tag ;parts))
    (buffer/clear out)
    (buffer/push-word out (length message))
    (file/write outf out message)
    (file/flush outf))

  (defn sized [bytes]
    (push-string @"" bytes))

  (defn check-health []
    (if replies
      (let [[ok err] (protect (health-check))]
        (unless ok (eprintf "poolparty: the health check failed: %v" err))
        (def message (if ok "" (string err)))
        (write-message health-reply (if ok 1 0) (sized (string/slice message 0 (min message-limit (length message))))))
      (health-check)))

  # The request whose handler runs: an error now is one to be answered. The loop runs in one fiber, which an error
  # ends, and is started again after it: a fiber for each request would cost more than decoding it. What waits in
  # the pipe is not touched by this. While the answer is written it is :answering: an error then is the end of the
  # pipe, for the server has gone. No closure may be made in the loop: Janet would make a function of its body.
  (var current nil)
  # Whether a part of the answer has been sent: an error then ends the process, for half of an answer must not pass for
  # a whole one.
  (var streaming false)

  (defn write-now [& parts]
    (def request current)
    (set current :answering)
    (file/write outf ;parts)
    (file/flush outf)
    (set current request)
    (flush))

  (defn send-piece [status headers piece]
    (unless streaming
      (def head (make-head status headers))
      (put head 0 response-start)
      (write-now (buffer/push-word @"" (length head)) head)
      (set streaming true))
    (buffer/clear out)
    (buffer/push-word out (+ 1 (uint-length (length piece)) (length piece)))
    (buffer/push-byte out response-chunk)
    (push-uint out (length piece))
    (write-now out piece))

  # Frames that stood in the pipe behind a request that streams, and whether the pipe was ever read without waiting: the
  # C library then takes its end for an error.
  (def ahead @[])
  (var looked false)

  # Whether there is a frame: if so it is appended to the buffer. A first byte shows it, the rest of it is waited for.
  (defn read-frame-now [frame]
    (waits-for-requests false)
    (set looked true)
    (def [begun byte] (protect (file/read inf 1 frame)))
    (waits-for-requests true)
    (cond
      (not begun) (if (requests-have-ended?) :end :none)
      (nil? byte) :end
      # An error is the pipe's end here.
      (let [[whole] (protect
                      (file/read inf 3 frame)
                      (file/read inf (frame-size frame) frame))]
        (if whole :frame :end))))

  (defn cancelled? []
    (var seen :frame)
    (while (= seen :frame)
      (def frame @"")
      (set seen (read-frame-now frame))
      (when (= seen :frame)
        (if (= stream-cancel-frame (string frame))
          (set seen :end)
          (array/push ahead frame))))
    (= seen :end))

  (set gather (fn gather [status headers body]
    (def whole (unless streams @""))
    (each piece body
      (when (and streaming waits-for-requests (cancelled?))
        (when (and (fiber? body) (= (fiber/status body) :pending))
          (protect (cancel body "the client has left")))
        (break))
      (unless (bytes? piece)
        (errorf "a piece of a response's :body is a string or buffer, got %v" piece))
      (cond
        (empty? piece) nil
        streams (send-piece status headers piece)
        (buffer/push whole piece)))
    (if streaming
      (do
        (set streaming false)
        (buffer/clear out)
        (buffer/push out response-end)
        # The loop must take these before it reads: it is left, and begun again.
        (unless (empty? ahead)
          (write-now out)
          (set current nil)
          (error ahead))
        nil)
      (or whole ""))))

  (defn take-frame []
    (def tag (in buf 4))
    (cond
      (= tag health-check-request) (check-health)
      (index-of tag [http-request http-request-file])
      (do
        (set current (if (= tag http-request) (read-http-request buf 5) (read-file-request buf 5)))
        (write-now out (encode out (handler current)))
        (set current nil))
      (errorf "poolparty: a request of a kind this library does not know (%d)" tag)))

  (defn take-ahead []
    (while (not (empty? ahead))
      (buffer/clear buf)
      (buffer/push buf (in ahead 0))
      (array/remove ahead 0)
      (take-frame)))

  (defn run []
    (forever
      (buffer/clear buf)
      (unless (and (file/read inf 4 buf) (= (length buf) 4))
        (break))
      (def size (+ (in buf 0) (* 256 (+ (in buf 1) (* 256 (+ (in buf 2) (* 256 (in buf 3)))))))) # frame-size, inlined
      (when (= size 0)
        (error "poolparty: a frame without a message"))
      (var here (if (> size first-part) first-part size))
      (unless (and (file/read inf here buf) (= (length buf) (+ here 4)))
        (break))
      (def tag (in buf 4))
      (when (and (< here size) (not (head-is-in? buf)))
        (file/read inf (- size here) buf)
        (set here size))
      (cond
        (= tag http-request)
        (do
          (def request
            (if (= here size)
              (read-http-request buf 5)
              (read-http-request buf 5 inf (- size here))))
          (set current request)
          (def body (encode out (handler request)))
          (set current :answering)
          (file/write outf out body)
          (file/flush outf)
          (set current nil)
          # Printed lines belong in the log now, not when stdout's buffer is full.
          (flush)
          (when (> size kept-buffer-limit)
            (buffer/clear buf)
            (buffer/trim buf)))

        (and (= tag stream-cancel) waits-for-requests)
        nil # that stream has ended meanwhile

        (take-frame))))

  (when says-ready
    (def files (and body-files (index-of "body-file" offered)))
    (def features (filter truthy? [(if replies "health-reply") (if streams "stream")
                               (if waits-for-requests "stream-cancel") (if files "body-file")]))
    (write-message ready (length features) ;(map sized features)))

  # Answer the request, if nothing of an answer has left; whether the server is there to take it.
  (defn failed [request err fiber]
    (eprintf "poolparty: %s %q failed" (request :method) (request :uri))
    (debug/stacktrace fiber (if (bytes? err) err (string/format "%q" err)) "")
    (eflush)
    (when streaming
      (flush)
      (os/exit 1))
    (def [written] (protect (file/write outf out (encode out failure)) (file/flush outf)))
    (flush)
    written)

  (var running true)
  (while running
    (try
      (do (take-ahead) (run) (set running false))
      ([err fiber]
        (def request current)
        (cond
          (= err ahead) nil
          (= request :answering) (set running false)
          request (set running (failed request err fiber))
          (and looked (= err "could not read file")) (set running false)
          (propagate err fiber))))))
