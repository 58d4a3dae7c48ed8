"""Transfers of gigabytes both ways, and many event streams at once (docs/bodies.md).

    python -m benchmarks.bodies                 measures, and prints
    python -m benchmarks.bodies --write         and writes it into docs/bodies.md

Each transfer goes through Poolparty to a Python and a Janet child, and through nginx to PHP-FPM, one after
the other in each round. Both ends make the SHA-256 of what passes, in the time that is measured: an upload
whose sum differs, or a download, ends the measurement.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import machine
from benchmarks.figures import Table, number, percentile
from benchmarks.pages import replace_between
from benchmarks.processes import Server, free_port, resident
from benchmarks.servers import NotFound, find, janet, server_python

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "bodies.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"

BLOCK = 1 << 20
STREAMS = 200
EVENT_INTERVAL = 0.25
"""Seconds between two events of a stream."""

PYTHON = """import hashlib, os, time
import poolparty

BLOCK = bytes(range(256)) * 4096

def blocks(count):
    for _ in range(count):
        yield BLOCK

def events():
    while True:
        yield f"data: {time.monotonic()}\\n\\n"
        time.sleep(INTERVAL)

def handler(request):
    if request.path == "/events":
        return {"headers": {"Content-Type": "text/event-stream"}, "body": events()}
    if request.method == "GET":
        return {"body": blocks(int(request.query or 0))}
    digest = hashlib.sha256()
    with request.open_body() as body:
        while data := body.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()

poolparty.serve(handler)
""".replace("INTERVAL", str(EVENT_INTERVAL))

JANET = """(import poolparty)
(def block (let [b @""] (for _ 0 4096 (for n 0 256 (buffer/push-byte b n))) (string b)))
(defn sum [path]
  (def process (os/spawn ["sha256sum" path] :p {:out :pipe :in (file/open "/dev/null")}))
  (def said (ev/read (process :out) 64))
  (os/proc-wait process)
  said)
(defn handler [request]
  (if (= (request :method) "GET")
    (let [count (or (scan-number (last (string/split "?" (request :uri)))) 0)]
      {:body (coro (repeat count (yield block)))})
    {:body (if-let [path (request :body-file)] (sum path) "")}))
(defn main [&] (poolparty/serve handler :body-files true))
"""

PHP = """<?php
if ($_SERVER["REQUEST_METHOD"] === "GET") {
    $block = implode("", array_map("chr", range(0, 255)));
    $block = str_repeat($block, 4096);
    for ($n = (int) ($_SERVER["QUERY_STRING"] ?? 0); $n > 0; $n--) {
        echo $block;
        flush();
    }
} else {
    echo hash_file("sha256", "php://input");
}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bodies", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mebibytes", type=int, default=3072, help="of each transfer")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the event streams")
    parser.add_argument("--directory", help="for the files of bodies; on a disk, and with room for one")
    parser.add_argument("--write", action="store_true", help="into docs/bodies.md")
    options = parser.parse_args(arguments)
    load = machine.load()
    size = options.mebibytes
    digest = hashlib.sha256()
    for _ in range(size):
        digest.update(bytes(range(256)) * 4096)
    expected = digest.hexdigest()
    samples: dict[str, dict[str, list[float]]] = {}
    for turn in range(options.rounds):
        for label, make in SERVERS.items():
            with tempfile.TemporaryDirectory(prefix="bodies-", dir=options.directory) as name:
                folder = Path(name)
                folder.chmod(0o755)
                try:
                    server = make(folder)
                except NotFound as missing:
                    print(f"{label}: {missing}", file=sys.stderr)
                    continue
                with server, peak(server) as highest:
                    for way, transfer in (("up", upload), ("down", download)):
                        began = time.monotonic()
                        transfer(server.port, size, expected)
                        rate = size / (time.monotonic() - began)
                        samples.setdefault(label, {}).setdefault(way, []).append(rate)
                        print(
                            f"{turn + 1}/{options.rounds}: {label} {way}: {rate:.0f} MiB/s", file=sys.stderr
                        )
                samples[label].setdefault("memory", []).append(highest() / (1 << 20))
    with (
        tempfile.TemporaryDirectory(prefix="bodies-") as name,
        poolparty_python(Path(name), STREAMS) as server,
    ):
        streams = listen(server, options.seconds)
    text = page(samples, streams, size, options, load)
    print(text, end="")
    if options.write:
        replace_between(PAGE, BEGIN, END, text)
    return 0


# --- the servers -------------------------------------------------------------------------------------------


def poolparty(folder: Path, command: list[str], children: int) -> Server:
    port = free_port()
    spool = folder / "spool"
    spool.mkdir()
    own = [server_python(), str(CHECKOUT / "bin" / "poolparty"), "--listen-address", f"127.0.0.1:{port}"]
    own += ["--ctl-socket", str(folder / "ctl.sock"), "--request-spool-dir", str(spool)]
    own += ["--max-request-body-size", "8G"]
    own += ["--min-pool-size", str(children), "--max-pool-size", str(children)]
    return Server([*own, "--", *command], port, folder, os.environ)


def poolparty_python(folder: Path, children: int = 1) -> Server:
    (folder / "app.py").write_text(PYTHON)
    return poolparty(folder, [server_python(), str(folder / "app.py")], children)


def poolparty_janet(folder: Path) -> Server:
    (folder / "app.janet").write_text(JANET)
    return poolparty(folder, [janet(), str(folder / "app.janet")], 1)


def nginx(folder: Path) -> Server:
    """With its own defaults: an upload is written to a file before PHP is asked, as it is here."""
    fpm = find("php-fpm", "php-fpm8.2", "php-fpm8.3", "php-fpm8.4", "php-fpm8.1")
    port = free_port()
    root = os.getuid() == 0
    script = folder / "app.php"
    script.write_text(PHP)
    user = "user = root\ngroup = root\n" if root else ""
    (folder / "fpm.conf").write_text(
        f"[global]\nerror_log = {folder}/fpm.log\ndaemonize = no\n[www]\nlisten = {folder}/fpm.sock\n"
        f"pm = static\npm.max_children = 1\n{user}"
        "php_admin_value[post_max_size] = 0\nphp_admin_value[enable_post_data_reading] = 0\n"
        "php_admin_value[output_buffering] = 0\nphp_admin_value[max_execution_time] = 0\n"
    )
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        ("user root;\n" if root else "") + f"worker_processes 1;\nerror_log {folder}/nginx.log;\n"
        f"pid {folder}/nginx.pid;\ndaemon off;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}client_max_body_size 8g;\nfastcgi_max_temp_file_size 0;\n"
        f"fastcgi_read_timeout 600;\nserver {{ listen 127.0.0.1:{port};\n"
        f"location / {{\nfastcgi_pass unix:{folder}/fpm.sock;\n"
        f"fastcgi_param SCRIPT_FILENAME {script};\nfastcgi_param REQUEST_METHOD $request_method;\n"
        "fastcgi_param QUERY_STRING $query_string;\nfastcgi_param CONTENT_TYPE $content_type;\n"
        "fastcgi_param CONTENT_LENGTH $content_length;\n}}}\n"
    )
    companion = [fpm, "--nodaemonize", "--fpm-config", str(folder / "fpm.conf")]
    companion += ["--allow-to-run-as-root"] if root else []
    own = [
        find("nginx"),
        "-p",
        str(folder),
        "-c",
        str(folder / "nginx.conf"),
        "-e",
        str(folder / "nginx.log"),
    ]
    return Server(own, port, folder, os.environ, companions=[companion])


SERVERS: dict[str, Callable[[Path], Server]] = {
    "Poolparty, Python": poolparty_python,
    "Poolparty, Janet": poolparty_janet,
    "nginx + PHP-FPM": nginx,
}


@contextmanager
def peak(server: Server) -> Iterator[Callable[[], int]]:
    """The most bytes that the server's largest process has had resident, children and PHP included."""
    highest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.05):
            highest = max([highest, *map(resident, server.pids())])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: highest
    finally:
        done.set()
        watcher.join()


# --- the load ----------------------------------------------------------------------------------------------


def upload(port: int, mebibytes: int, expected: str) -> None:
    """SystemExit: what arrived is not what was sent."""
    block = bytes(range(256)) * 4096
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    length = str(mebibytes * BLOCK)
    connection.request("PUT", "/", (block for _ in range(mebibytes)), {"Content-Length": length})
    response = connection.getresponse()
    said = response.read().decode().strip()
    connection.close()
    if (response.status, said) != (200, expected):
        raise SystemExit(f"benchmarks.bodies: an upload was answered {response.status} {said[:80]!r}")


def download(port: int, mebibytes: int, expected: str) -> None:
    """SystemExit: what arrived is not what was asked for."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", f"/?{mebibytes}")
    response = connection.getresponse()
    digest = hashlib.sha256()
    room = memoryview(bytearray(BLOCK))
    while size := response.readinto(room):
        digest.update(room[:size])
    connection.close()
    if (response.status, digest.hexdigest()) != (200, expected):
        raise SystemExit(f"benchmarks.bodies: a download of status {response.status} differs")


def listen(server: Server, seconds: float) -> dict[str, float]:
    """STREAMS clients listen to events; at the end half of them leave. Times in milliseconds."""
    late: list[float] = []
    sockets = []
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(STREAMS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.sendall(b"GET /events HTTP/1.1\r\nHost: h\r\n\r\n")
            selector.register(client, selectors.EVENT_READ)
            sockets.append(client)
        end = time.monotonic() + seconds
        # The first events meet the start of all the others.
        begun = time.monotonic() + 5.0
        while (now := time.monotonic()) < end:
            for key, _ in selector.select(1.0):
                data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                seen = time.monotonic()
                if not data:
                    raise SystemExit("benchmarks.bodies: a stream ended")
                for told in re.findall(rb"data: ([0-9.]+)", data):
                    if now > begun:
                        late.append(1000 * (seen - float(told)))
        for client in sockets[::2]:
            selector.unregister(client)
            client.close()
        left = time.monotonic()
        while busy(server) > STREAMS // 2:
            if time.monotonic() > left + 30:
                raise SystemExit(f"benchmarks.bodies: {busy(server)} children are busy")
            time.sleep(0.02)
        free = time.monotonic() - left
    late.sort()
    return {
        "events": float(len(late)),
        "p50": percentile(late, 50),
        "p99": percentile(late, 99),
        "longest": late[-1],
        "free": 1000 * free,
    }


def busy(server: Server) -> int:
    """Children that run something. By the control socket itself: starting poolparty-ctl takes longer."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(server.folder / "ctl.sock"))
        control.sendall(b"stats --json\nexit\n")
        said = b"".join(iter(lambda: control.recv(1 << 16), b""))
    stats, _ = json.JSONDecoder().raw_decode(said.decode())  # and behind it the answer to exit
    return int(stats["pools"][0]["busy"])


# --- the page ----------------------------------------------------------------------------------------------


def page(
    samples: dict[str, dict[str, list[float]]],
    streams: dict[str, float],
    size: int,
    options: argparse.Namespace,
    load: float,
) -> str:
    """The table and what stands below it."""
    rows = []
    for label, taken in samples.items():
        figures = [percentile(sorted(taken[way]), 50) for way in ("up", "down")]
        rows.append([label, *(number(figure) for figure in figures), number(max(taken["memory"]))])
    table = Table(["", "up, MiB/s", "down, MiB/s", "largest process, MiB"], rows).markdown()
    about = machine.describe()
    return (
        f"\n{table}\n"
        f"{size:,} MiB each way, one child, medians of {options.rounds} rounds, SHA-256 made at both ends; "
        f"by `python -m benchmarks.bodies --write`, on {about['cores']} cores ({about['processor']}), "
        f"{about['system']}; the machine's load before was {load:.1f}.\n\n"
        f"{STREAMS} clients listened to {STREAMS} Python children for {options.seconds:g} s, an event every "
        f"{1000 * EVENT_INTERVAL:g} ms each: of {streams['events']:,.0f} events half came within "
        f"{number(streams['p50'])} ms, 99 % within {number(streams['p99'])} ms, the latest after "
        f"{number(streams['longest'])} ms. When half of the clients had left, their children were free "
        f"after {number(streams['free'])} ms.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
