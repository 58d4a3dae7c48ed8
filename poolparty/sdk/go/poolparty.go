// Package poolparty is the worker library for Go programs: it serves a net/http handler to the server Poolparty.
//
//	func main() {
//		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") })
//		log.Fatal(poolparty.Serve(nil, nil))
//	}
//
// The program runs as a child of the server: requests arrive as frames on descriptor 0, answers leave on descriptor 3,
// stdout and stderr are free for printing (docs/worker-protocol.md). Requests are answered one at a time.
package poolparty

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"
)

// Version is that of this library.
const Version = "0.1.0"

const (
	httpRequest        = 0
	healthCheckRequest = 1
	streamCancel       = 3

	httpResponse  = 0
	ready         = 1
	healthReply   = 2
	responseStart = 3
	responseChunk = 4
	responseEnd   = 5

	maxFrameSize   = 0x7fffffff
	maxMessageSize = 1000    // of a health reply: a line of the log
	maxStackSize   = 65536   // what is longer is cut
	largeBody      = 16384   // from here on a second write beats copying it behind its head
	keptBody       = 1 << 20 // what is larger does not wait for the handler's end
	bufferSize     = 65536   // a pipe's usual capacity: one read takes several requests, if they wait
)

// brokenFrame is what follows a frame that could mean anything: the process ends.
type brokenFrame string

func (e brokenFrame) Error() string { return string(e) }

const tooLong brokenFrame = "a request with a length that points beyond its frame"

// Serve answers requests with the handler until the server closes the pipe; then it returns nil. A nil handler is
// http.DefaultServeMux.
//
// A handler that panics has its trace written to stderr and its request answered 500; the process lives on. What the
// handler writes is sent when it returns, or piece by piece where it calls Flush, or has written more than 1 MiB, and the
// server offers streams. The request's context is done when its handler has returned, or its client is found to have
// left in the middle of a stream; what is written then is an error.
//
// healthCheck, which may be nil, is called now and then while no request runs. If it returns an error, this process is
// unwell and will be replaced.
func Serve(handler http.Handler, healthCheck func() error) error {
	if handler == nil {
		handler = http.DefaultServeMux
	}
	w, err := newWorker(handler, healthCheck)
	if err != nil {
		return err
	}
	// A terminal's Ctrl-C is for the server, which then drains: this process ends when its pipe does. Not ignored,
	// because programs started from here would inherit that.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	err = w.run()
	if errors.Is(err, syscall.EPIPE) {
		return nil // the server has gone: nobody is left to be answered
	}
	var broken brokenFrame
	if errors.As(err, &broken) {
		fmt.Fprintln(os.Stderr, "poolparty:", err)
		os.Exit(1)
	}
	return err
}

type worker struct {
	handler     http.Handler
	healthCheck func() error
	requests    *bufio.Reader
	answers     *os.File
	ready       bool // whether the server offers to be told so, and so on
	replies     bool
	streams     bool
	cancels     bool
	stack       bool
	behind      behind
}

func newWorker(handler http.Handler, healthCheck func() error) (*worker, error) {
	answers := os.NewFile(3, "answers")
	for _, pipe := range []*os.File{os.Stdin, answers} {
		if info, err := pipe.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
			return nil, errors.New("descriptors 0 and 3 are not the server's pipes: this program is started by " +
				"the server, poolparty -- " + os.Args[0])
		}
	}
	w := &worker{
		handler:     handler,
		healthCheck: healthCheck,
		requests:    bufio.NewReaderSize(os.Stdin, bufferSize),
		answers:     answers,
	}
	// A program that the handler starts must not find our requests on its standard input, and eat them.
	syscall.CloseOnExec(0)
	syscall.CloseOnExec(3)
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	os.Stdin = nothing
	offered := map[string]bool{}
	for _, feature := range strings.Split(os.Getenv("POOLPARTY_FEATURES"), ",") {
		offered[feature] = true
	}
	w.ready = offered["ready"]
	w.replies = w.ready && offered["health-reply"]
	w.streams = w.ready && offered["stream"]
	w.cancels = w.streams && offered["stream-cancel"]
	w.stack = w.ready && offered["stack"] && !signal.Ignored(syscall.SIGUSR1)
	return w, nil
}

func (w *worker) run() error {
	if w.ready {
		var features []string
		if w.replies {
			features = append(features, "health-reply")
		}
		if w.streams {
			features = append(features, "stream")
		}
		if w.cancels {
			features = append(features, "stream-cancel")
		}
		if w.stack {
			features = append(features, "stack")
			showStack()
		}
		if err := w.send(appendStrings([]byte{ready}, features), nil); err != nil {
			return err
		}
	}
	for {
		payload, err := w.next()
		if err != nil || payload == nil {
			return err
		}
		switch {
		case payload[0] == httpRequest:
			err = w.answer(payload)
		case payload[0] == healthCheckRequest && len(payload) == 1:
			err = w.checkHealth()
		case isCancel(payload): // of a stream that has ended meanwhile
		default:
			err = brokenFrame(fmt.Sprintf("a request of a kind this library does not know (%d)", payload[0]))
		}
		if err != nil {
			return err
		}
	}
}

// showStack has SIGUSR1 write the stacks of all goroutines to stderr.
func showStack() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		for range signals {
			stack := make([]byte, maxStackSize)
			stack = stack[:runtime.Stack(stack, true)]
			fmt.Fprintf(os.Stderr, "poolparty: the program's stack\n%s\n", stack)
		}
	}()
}

// next gives the next frame's payload, nil at the pipe's end.
func (w *worker) next() ([]byte, error) {
	if w.behind.used {
		return w.behind.next(w)
	}
	return w.read()
}

func (w *worker) read() ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(w.requests, size[:]); err != nil {
		return nil, unlessEnd(err)
	}
	length := binary.LittleEndian.Uint32(size[:])
	if length == 0 || length > maxFrameSize {
		return nil, brokenFrame("a frame that is empty or too large")
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(w.requests, payload); err != nil {
		return nil, unlessEnd(err)
	}
	return payload, nil
}

func unlessEnd(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return err
}

// send writes a frame: the message's head and, without copying it if it is large, its body.
func (w *worker) send(head, body []byte) error {
	size := len(head) + len(body)
	if size > maxFrameSize {
		return fmt.Errorf("a response of %d bytes is larger than a frame can be (%d)", size, maxFrameSize)
	}
	frame := make([]byte, 4, 4+len(head)+largeBody)
	binary.LittleEndian.PutUint32(frame, uint32(size))
	frame = append(frame, head...)
	if len(body) < largeBody {
		frame, body = append(frame, body...), nil
	}
	_, err := w.answers.Write(frame)
	if err == nil && body != nil {
		_, err = w.answers.Write(body)
	}
	return err
}

func isCancel(payload []byte) bool { return len(payload) == 1 && payload[0] == streamCancel }

// behind is what stands in the pipe behind a request that streams. Since a read cannot be taken back, whoever reads
// there meanwhile goes on until the next frame is there; only then does the loop read by itself again.
type behind struct {
	used     bool // the loop's own: whether there may be anything here
	mutex    sync.Mutex
	arrived  *sync.Cond
	frames   []frame
	watching bool
	stream   *clientContext // the one that runs
}

type frame struct {
	payload []byte
	err     error
}

// begin has the stream's context end with the client's interest in it.
func (b *behind) begin(w *worker, stream *clientContext) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.stream = stream
	if !b.watching {
		b.used, b.watching = true, true
		if b.arrived == nil {
			b.arrived = sync.NewCond(&b.mutex)
		}
		go b.watch(w)
	}
}

func (b *behind) end() {
	b.mutex.Lock()
	b.stream = nil
	b.mutex.Unlock()
}

func (b *behind) watch(w *worker) {
	for watching := true; watching; {
		payload, err := w.read()
		b.mutex.Lock()
		if !isCancel(payload) {
			b.frames = append(b.frames, frame{payload, err})
		}
		if b.stream != nil && (isCancel(payload) || payload == nil) {
			b.stream.end()
		}
		watching = b.stream != nil && payload != nil
		b.watching = watching
		b.arrived.Signal()
		b.mutex.Unlock()
	}
}

func (b *behind) next(w *worker) ([]byte, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	for len(b.frames) == 0 && b.watching {
		b.arrived.Wait()
	}
	if len(b.frames) == 0 {
		b.used = false
		return w.read()
	}
	next := b.frames[0]
	b.frames = b.frames[1:]
	return next.payload, next.err
}

// clientContext is a request's context. Nearly no handler asks for its channel, so that it is made when one does.
type clientContext struct {
	mutex sync.Mutex
	ended bool
	done  chan struct{}
}

func (c *clientContext) Deadline() (deadline time.Time, ok bool) { return }

func (c *clientContext) Value(key any) any { return nil }

func (c *clientContext) Done() <-chan struct{} {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.ended {
			close(c.done)
		}
	}
	return c.done
}

func (c *clientContext) Err() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.ended {
		return context.Canceled
	}
	return nil
}

func (c *clientContext) end() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if !c.ended && c.done != nil {
		close(c.done)
	}
	c.ended = true
}

// ---- Requests.

type reader struct {
	payload []byte
	at      int
	err     error
}

func (r *reader) uint() int {
	number, size := binary.Uvarint(r.payload[r.at:])
	if size <= 0 || number > uint64(len(r.payload)-r.at) {
		r.err = tooLong
		r.at = len(r.payload)
		return 0
	}
	r.at += size
	return int(number)
}

func (r *reader) data() []byte {
	size := r.uint()
	if size > len(r.payload)-r.at {
		r.err = tooLong
		return nil
	}
	r.at += size
	return r.payload[r.at-size : r.at : r.at]
}

func (r *reader) string() string { return string(r.data()) }

var noRequest http.Request

// decode makes of a frame's payload what net/http's own server gives to handlers.
func decode(ctx context.Context, payload []byte) (request *http.Request, uri string, err error) {
	r := &reader{payload: payload, at: 1}
	remoteAddress := r.string()
	uri = r.string()
	method := r.string()
	count := r.uint()
	header := make(http.Header, count)
	for ; count > 0 && r.err == nil; count-- {
		name := r.string()
		header[http.CanonicalHeaderKey(name)] = []string{r.string()}
	}
	body := r.data()
	if r.err == nil && r.at != len(payload) {
		r.err = brokenFrame("a request whose lengths do not add up to its frame's")
	}
	if r.err != nil {
		return nil, "", r.err
	}
	request = noRequest.WithContext(ctx) // a copy, as it would be of one that has the fields already
	request.Method, request.Proto, request.ProtoMajor, request.ProtoMinor = method, "HTTP/1.1", 1, 1
	request.Header, request.Body, request.ContentLength = header, http.NoBody, int64(len(body))
	request.Host, request.RemoteAddr = header.Get("Host"), remoteAddress
	if len(body) > 0 {
		request.Body = io.NopCloser(bytes.NewReader(body))
	}
	header.Del("Host")
	// The uri is absolute; a handler expects the path and what follows.
	request.RequestURI = uri
	if scheme := strings.Index(uri, "://"); scheme >= 0 {
		rest := uri[scheme+3:]
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		if request.Host == "" {
			request.Host = rest[:end]
		}
		if uri[:scheme] == "https" {
			request.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: request.Host}
		}
		request.RequestURI = rest[end:]
		if !strings.HasPrefix(request.RequestURI, "/") {
			request.RequestURI = "/" + request.RequestURI
		}
	}
	if request.URL, err = url.ParseRequestURI(request.RequestURI); err != nil {
		// What net/url does not take, a path with a lone percent sign say, is still this request's path.
		path, query, _ := strings.Cut(request.RequestURI, "?")
		request.URL = &url.URL{Path: path, RawQuery: query}
	}
	return request, uri, nil
}

// ---- Responses.

// response is the http.ResponseWriter of one request, an http.Flusher and an http.CloseNotifier.
type response struct {
	worker  *worker
	request *http.Request
	header  http.Header
	status  int // 0: not yet decided
	sent    http.Header
	body    []byte
	started bool  // whether it has become a stream
	err     error // of the pipe
	context clientContext
}

func (r *response) Header() http.Header { return r.header }

func (r *response) WriteHeader(status int) {
	if r.status != 0 || status >= 100 && status < 200 {
		return // decided already, or an interim response, which this protocol does not have
	}
	if status < 200 || status > 599 {
		panic(fmt.Sprintf("a response's status is from 200 to 599, not %d", status))
	}
	r.status = status
	r.sent = r.header.Clone()
}

func (r *response) Write(data []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if r.gone() {
		return 0, errClientGone
	}
	r.body = append(r.body, data...)
	r.flushLarge()
	return len(data), r.err
}

func (r *response) WriteString(text string) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if r.gone() {
		return 0, errClientGone
	}
	r.body = append(r.body, text...)
	r.flushLarge()
	return len(text), r.err
}

func (r *response) flushLarge() {
	if len(r.body) > keptBody {
		r.Flush()
	}
}

var errClientGone = errors.New("the client has left")

// gone tells whether a stream is not wanted any more.
func (r *response) gone() bool { return r.started && r.worker.cancels && r.context.Err() != nil }

// Flush sends what has been written, if the server takes responses in pieces.
func (r *response) Flush() { r.FlushError() }

// FlushError is Flush for http.ResponseController.
func (r *response) FlushError() error {
	if !r.worker.streams || r.err != nil {
		return r.err
	}
	if r.gone() {
		return errClientGone
	}
	if !r.started {
		head := r.head(responseStart)
		r.started = true
		if r.err = r.worker.send(head, nil); r.err != nil {
			return r.err
		}
		if r.worker.cancels {
			r.worker.behind.begin(r.worker, &r.context)
		}
	}
	if len(r.body) > 0 {
		r.err = r.worker.send(binary.AppendUvarint([]byte{responseChunk}, uint64(len(r.body))), r.body)
		r.body = r.body[:0]
	}
	return r.err
}

// CloseNotify tells of a client that has left in the middle of a stream, as r.Context() does.
func (r *response) CloseNotify() <-chan bool {
	notice := make(chan bool, 1)
	done := r.context.Done()
	go func() {
		<-done
		notice <- true
	}()
	return notice
}

// finish sends all, or what a stream still lacks.
func (r *response) finish() error {
	if r.started {
		r.Flush()
		if r.err == nil {
			r.err = r.worker.send([]byte{responseEnd}, nil)
		}
		return r.err
	}
	return r.worker.send(binary.AppendUvarint(r.head(httpResponse), uint64(len(r.body))), r.body)
}

// head is what precedes the body in both kinds of response.
func (r *response) head(tag byte) []byte {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	header := r.sent
	if _, typed := header["Content-Type"]; !typed && len(r.body) > 0 && header.Get("Content-Encoding") == "" {
		header.Set("Content-Type", http.DetectContentType(r.body))
	}
	// The server counts for itself, but not what is still to come, or what a GET's answer would have been.
	if r.request.Method != http.MethodHead && tag == httpResponse {
		header.Del("Content-Length")
	}
	header.Del("Transfer-Encoding")
	names := make([]string, 0, len(header))
	for name, values := range header {
		if values != nil { // nil is how a handler suppresses a header
			names = append(names, name)
		}
	}
	sort.Strings(names)
	head := binary.AppendUvarint([]byte{tag}, uint64(r.status))
	head = binary.AppendUvarint(head, uint64(len(names)))
	for _, name := range names {
		head = appendStrings(appendString(head, name), header[name])
	}
	return head
}

func appendString(to []byte, text string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(text))), text...)
}

func appendStrings(to []byte, texts []string) []byte {
	to = binary.AppendUvarint(to, uint64(len(texts)))
	for _, text := range texts {
		to = appendString(to, text)
	}
	return to
}

// ---- Answering.

func (w *worker) answer(payload []byte) error {
	answer := &response{worker: w, header: http.Header{}}
	request, uri, err := decode(&answer.context, payload)
	if err != nil {
		return err
	}
	answer.request = request
	defer answer.context.end()
	done := w.handle(answer, request, uri)
	if answer.started && w.cancels {
		w.behind.end()
	}
	if answer.gone() {
		return w.send([]byte{responseEnd}, nil)
	}
	if done {
		return answer.finish()
	}
	if answer.err != nil {
		return answer.err
	}
	if answer.started {
		os.Exit(1) // half of an answer must not pass for a whole one
	}
	failure := &response{worker: w, request: request, header: http.Header{}}
	failure.header.Set("Content-Type", "text/plain; charset=utf-8")
	failure.WriteHeader(http.StatusInternalServerError)
	failure.WriteString("internal server error\n")
	return failure.finish()
}

// handle tells whether the handler came to its end.
func (w *worker) handle(answer *response, request *http.Request, uri string) (done bool) {
	defer func() {
		if reason := recover(); reason != nil && reason != http.ErrAbortHandler {
			fmt.Fprintf(os.Stderr, "poolparty: %s %q failed\npanic: %v\n%s", request.Method, uri, reason,
				debug.Stack())
		}
	}()
	w.handler.ServeHTTP(answer, request)
	return true
}

func (w *worker) checkHealth() error {
	err := w.health()
	if err != nil {
		fmt.Fprintln(os.Stderr, "poolparty: the health check failed:", err)
		if !w.replies {
			os.Exit(1)
		}
	}
	if !w.replies {
		return nil
	}
	if err == nil {
		return w.send(appendString([]byte{healthReply, 1}, ""), nil)
	}
	message := strings.ToValidUTF8(err.Error(), "?")
	if end := maxMessageSize; len(message) > end {
		for !utf8.RuneStart(message[end]) {
			end--
		}
		message = message[:end]
	}
	return w.send(appendString([]byte{healthReply, 0}, message), nil)
}

func (w *worker) health() (err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("panic: %v", reason)
		}
	}()
	if w.healthCheck == nil {
		return nil
	}
	return w.healthCheck()
}
