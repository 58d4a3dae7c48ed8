// What test_every_library.py asks of a library; the same in every language.
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"poolparty"
)

func healthCheck() error {
	switch os.Getenv("TEST_HEALTH") {
	case "fail":
		return errors.New("no database")
	case "long":
		return errors.New(strings.Repeat("ü", 5000))
	}
	return nil
}

func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Method", r.Method)
	w.Header().Set("Uri", "http://"+r.Host+r.RequestURI)
	w.Header().Set("Path", r.URL.Path)
	w.Header().Set("Query", r.URL.RawQuery)
	w.Header().Set("Remote-Address", r.RemoteAddr)
	count := len(r.Header)
	if r.URL.Query().Has("x") {
		count++ // this one has a Host, which net/http keeps elsewhere
	}
	w.Header().Set("Headers", strconv.Itoa(count))
	w.Header()["Content-Type"] = nil
	w.WriteHeader(http.StatusCreated)
	io.Copy(w, r.Body)
}

func header(w http.ResponseWriter, r *http.Request) {
	values, ok := r.Header[http.CanonicalHeaderKey(r.URL.RawQuery)]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		values = []string{"none"}
	}
	io.WriteString(w, values[0])
}

func octets(w http.ResponseWriter, r *http.Request) {
	size, _ := strconv.Atoi(r.URL.RawQuery)
	body := make([]byte, size)
	for n := range body {
		body[n] = byte(n)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(body)
}

func headers(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Set-Cookie", "a=1")
	w.Header().Set("X-Long", strings.Repeat("v", 300))
	w.Header().Add("Set-Cookie", "b=2")
}

func manyHeaders(w http.ResponseWriter, r *http.Request) {
	for n := 0; n < 300; n++ {
		w.Header().Set(fmt.Sprint("X-", n), strconv.Itoa(n))
	}
}

func fail(w http.ResponseWriter, r *http.Request) { panic("this one fails") }

func program(w http.ResponseWriter, r *http.Request) {
	command := exec.Command("sh", "-c", "cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open")
	command.Stdin = os.Stdin
	said, _ := command.Output()
	w.Write(said)
}

// spin runs until the file that the query names is there, and says where that begins.
func spin(w http.ResponseWriter, r *http.Request) {
	fmt.Println("spins")
	for {
		if _, err := os.Stat(r.URL.RawQuery); err == nil {
			break
		}
	}
	io.WriteString(w, "stopped")
}

func stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	for _, piece := range []string{"one\n", "", "\xff\n", "grün\n"} {
		io.WriteString(w, piece)
		w.(http.Flusher).Flush()
	}
	if r.URL.RawQuery == "fail" {
		panic("this one fails")
	}
}

func endless(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		io.WriteString(w, "more\n")
		w.(http.Flusher).Flush()
	}
	fmt.Println("closed")
}

func main() {
	for path, handler := range map[string]http.HandlerFunc{
		"/echo":         echo,
		"/header":       header,
		"/text":         func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "grün\n") },
		"/octets":       octets,
		"/headers":      headers,
		"/many-headers": manyHeaders,
		"/empty":        func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"/fail":         fail,
		"/bad-status":   func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(600) },
		// What is wrong in other languages when it runs does not compile in this one.
		"/bad-header": fail,
		"/bad-body":   fail,
		"/bad-answer": fail,
		"/say": func(w http.ResponseWriter, r *http.Request) {
			fmt.Println("seen", r.URL.Path)
		},
		"/program":           program,
		"/spin":              spin,
		"/leave":             func(w http.ResponseWriter, r *http.Request) { os.Exit(7) },
		"/stream":            stream,
		"/endless":           endless,
		"/stream-nothing":    func(w http.ResponseWriter, r *http.Request) {},
		"/stream-fail-first": fail,
	} {
		http.HandleFunc(path, handler)
	}
	if err := poolparty.Serve(nil, healthCheck); err != nil {
		log.Fatal(err)
	}
}
