"""What is special in the library for Go: handlers find what net/http's own server would have given them."""

from __future__ import annotations

import os
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.only("Go")

TEXT = {"Content-Type": ["text/plain; charset=utf-8"]}
FAILURE = (500, TEXT, b"internal server error\n")
ALL = {"POOLPARTY_FEATURES": "ready,stream,stream-cancel"}

PROGRAM = """
package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"time"

	"poolparty"
)

func main() {
	http.HandleFunc("/request", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.Method, r.Host, r.URL.Path, r.URL.EscapedPath(), r.URL.RawQuery, r.RequestURI)
		fmt.Fprintln(w, r.RemoteAddr, r.ContentLength, r.TLS != nil, r.Proto, r.Header["Host"], r.URL.Host)
	})
	http.HandleFunc("/form", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.FormValue("name"), r.FormValue("query"))
	})
	http.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		file, header, err := r.FormFile("file")
		if err != nil {
			panic(err)
		}
		data, _ := io.ReadAll(file)
		fmt.Fprint(w, header.Filename, len(data))
	})
	http.HandleFunc("/sniffed", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") })
	http.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "a.txt", time.Unix(0, 0), strings.NewReader("0123456789"))
	})
	http.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/there", 302)
	})
	http.HandleFunc("/late", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(202)
		w.Header().Set("X-Late", "1")
		w.WriteHeader(404)
	})
	http.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		fmt.Fprint(w, "data")
	})
	http.HandleFunc("/quiet", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "data")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		<-w.(http.CloseNotifier).CloseNotify()
		_, err := w.Write(make([]byte, 1))
		fmt.Println(r.Context().Err(), "-", err)
	})
	http.HandleFunc("/copied", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "data")
		w.(http.Flusher).Flush()
		for {
			if _, err := io.WriteString(w, strings.Repeat(".", 10000)); err != nil {
				panic(http.ErrAbortHandler) // as httputil.ReverseProxy does
			}
		}
	})
	http.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "3000000")
		for n := 0; n < 300; n++ {
			io.WriteString(w, strings.Repeat(".", 10000))
		}
	})
	http.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
	http.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Gone", "1")
		w.WriteHeader(201)
		fmt.Fprint(w, "gone")
		var nothing map[string]int
		nothing["a"] = 1
	})
	http.HandleFunc("/dump", func(w http.ResponseWriter, r *http.Request) {
		dump, _ := httputil.DumpRequest(r, true)
		w.Write(dump)
	})
	http.HandleFunc("/stdin", func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(os.Stdin)
		fmt.Fprint(w, len(data))
	})
	if err := poolparty.Serve(nil, nil); err != nil {
		panic(err)
	}
	fmt.Println("after")
}
"""


@pytest.fixture(scope="session")
def program(language: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "app.go"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


@pytest.fixture
def start(program: Path, start_program: Callable[..., Any]) -> Callable[..., Any]:
    return lambda environment=None: start_program(program, environment)


@pytest.fixture
def worker(start: Any) -> Any:
    return start()


def test_the_source_is_formatted_and_vetted(interpreter: str, sdk: Path, checkout: Path) -> None:
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    for folder in (sdk / "go", checkout / "examples"):
        vet = [interpreter, "vet", *(["app.go"] if folder.name == "examples" else ["./..."])]
        subprocess.run(vet, cwd=folder, env=environment, check=True)
    sources = [sdk / "go" / "poolparty.go", checkout / "examples" / "app.go"]
    gofmt = Path(interpreter).resolve().with_name("gofmt")
    assert subprocess.check_output([gofmt, "-l", *sources], text=True) == ""


def test_the_request_is_as_net_http_has_it(worker: Any) -> None:
    body = worker.ask("https://h:81/request?a=%41", "PUT", {"Host": "h:81"}, b"body")[2]
    assert body.decode().splitlines() == [
        "PUT h:81 /request /request a=%41 /request?a=%41",
        "192.0.2.1:4711 4 true HTTP/1.1 [] ",
    ]
    body = worker.ask("http://h/dump", "POST", {"Host": "h", "X-A": "1"}, b"text")[2]
    assert body == b"POST /dump HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\ntext"


@pytest.mark.parametrize("uri", ["http://h/%", "http://h/%zz?x", "http://h", "http://h?x"])
def test_strange_targets_are_requests_too(worker: Any, uri: str) -> None:
    assert worker.ask(uri)[0] == 404
    assert worker.ask("http://h/sniffed")[0] == 200


def test_forms_and_uploads(worker: Any) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert worker.ask("http://h/form?query=q", "POST", headers, b"name=gr%C3%BCn")[2] == "grünq".encode()
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"." * 300_000
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert worker.ask("http://h/upload", "POST", headers, part + b"\r\n--x--\r\n")[2] == b"f300000"


def test_net_http_s_own_answers(worker: Any) -> None:
    assert worker.ask("http://h/sniffed")[1] == {"Content-Type": ["text/html; charset=utf-8"]}
    status, headers, body = worker.ask("http://h/file", headers={"Range": "bytes=2-4"})
    assert (status, body, headers["Content-Range"]) == (206, b"234", ["bytes 2-4/10"])
    status, headers, body = worker.ask("http://h/file", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", ["10"])
    status, headers, _ = worker.ask("http://h/redirect")
    assert (status, headers["Location"]) == (302, ["/there"])


def test_a_head_that_is_written_is_written(worker: Any) -> None:
    assert worker.ask("http://h/late") == (202, {}, b"")


def test_a_flush_before_the_first_byte_sends_the_head(start: Any, frame_of: Any) -> None:
    worker = start(ALL)
    worker.ready()
    worker.send(frame_of("http://h/early"))
    assert [worker.frame()[0] for _ in range(3)] == [3, 4, 5]
    assert start().ask("http://h/early") == (200, {"Content-Type": ["text/event-stream"]}, b"data")


def test_a_handler_that_waits_is_woken_when_its_client_has_left(start: Any, frame_of: Any) -> None:
    worker = start(ALL)
    worker.ready()
    for _ in range(2):
        worker.send(frame_of("http://h/quiet"), frame_of("http://h/sniffed"))
        assert worker.pieces(1) == [b"data"]
        worker.cancel_stream()
        assert worker.line_of_stdout() == b"context canceled - the client has left\n"
        assert worker.response()[0] == 200
        assert worker.ask("http://h/sniffed")[0] == 200
    assert worker.leave()[0] == 0


def test_a_panic_because_the_client_has_left_does_not_end_the_process(start: Any, frame_of: Any) -> None:
    worker = start(ALL)
    worker.ready()
    worker.send(frame_of("http://h/copied"))
    assert worker.pieces(1) == [b"data"]
    worker.cancel_stream()
    assert worker.ask("http://h/sniffed")[0] == 200
    assert worker.leave()[1] == ""


def test_a_large_answer_is_sent_while_it_is_written_and_keeps_its_length(start: Any, frame_of: Any) -> None:
    worker = start(ALL)
    worker.ready()
    worker.send(frame_of("http://h/large"))
    tag, payload = worker.frame()
    assert (tag, b"Content-Length\x01\x073000000" in payload.data) == (3, True)
    assert sum(map(len, worker.pieces(3))) == 3_000_000
    assert worker.frame()[0] == 5


def test_a_panic_takes_back_what_was_written(worker: Any) -> None:
    assert worker.ask("http://h/panic") == FAILURE
    assert worker.ask("http://h/abort") == FAILURE
    status, stderr = worker.leave()
    assert status == 0
    assert "panic: assignment to entry in nil map" in stderr
    assert "/abort" not in stderr


def test_the_programs_stdin_is_empty_and_serve_returns(worker: Any, frame_of: Any) -> None:
    worker.send(frame_of("http://h/stdin"), frame_of("http://h/stdin"))
    assert [worker.response()[2] for _ in range(2)] == [b"0", b"0"]
    stdout, stderr = worker.process.communicate(timeout=20)
    assert (worker.process.returncode, stdout, stderr) == (0, b"after\n", b"")
