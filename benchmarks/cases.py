"""What is measured: each case once, with its contestants, its load and the columns of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks import measures
from benchmarks.measures import IDLE_CONNECTIONS, Measure, throughput
from benchmarks.servers import LABELS, Setup

BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "http://127.0.0.1/previous/page?with=query",
    "Cookie": "session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-User": "?1",
    "Priority": "u=0, i",
}
"""A browser's 12 fields besides Host."""


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    unit: str = ""


@dataclass(frozen=True)
class Case:
    """`kind` names the application, `columns[0]` is what is compared: `compared_with` has the title of each
    ratio and the label of the contestant it is to."""

    name: str
    title: str
    about: str
    kind: str
    setups: Sequence[Setup]
    measure: Measure
    columns: Sequence[Column]
    compared_with: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    charted: bool = False
    seconds: float = 0.0  # at least


RATE = Column("rate", "requests/s")
P50 = Column("p50", "p50", "ms")
P99 = Column("p99", "p99", "ms")
P999 = Column("p999", "p99.9", "ms")
CPU = Column("cpu_us", "CPU/request", "µs")
MEGABYTES = Column("megabytes", "MB/s")
REFUSED = Column("refused", "refused/s")
WORKER_CPU = Column("worker_cpu_us", "CPU/request of the HTTP worker", "µs")
FAST_P50 = Column("fast_p50", "fast p50", "ms")
FAST_P99 = Column("fast_p99", "fast p99", "ms")
FAST_P999 = Column("fast_p999", "fast p99.9", "ms")


# The contestants.


def _with(setups: Sequence[Setup], **changes: object) -> list[Setup]:
    return [Setup(**{**asdict(setup), **changes}) for setup in setups]


POOLS = (Setup("poolparty", "janet"), Setup("poolparty", "python"), Setup("original", "janet-original"))
RELAY = Setup("relay", "janet")
OTHERS = tuple(
    Setup(name)
    for name in ("nginx", "uwsgi", "puma", "gunicorn-sync", "gunicorn-gthread", "gunicorn-asgi", "uvicorn")
)
ASYNCHRONOUS = ("gunicorn-asgi", "uvicorn")
EVERYBODY = (*POOLS[:2], RELAY, POOLS[2], *OTHERS)

# With the default of 1,024 Poolparty refuses requests beyond it and the original closes connections.
MANY_CONNECTIONS = _with(POOLS, options=("--request-backlog", "4096"))

OURS = Setup("poolparty", "janet").label
ORIGINAL = Setup("original", "janet-original").label
RATIOS = {"× Poolparty": OURS, "× original": ORIGINAL, "× relay": RELAY.label}


WITHOUT_RELAY = [setup for setup in EVERYBODY if setup.server != "relay"]  # it serves small answers only
LIBRARIES = [
    found
    for child in ("janet", "janet-original", "python", "python-minimal")
    for found in _with([RELAY], child=child)
]


FRAMEWORKS = (
    Setup("poolparty", "wsgi"),
    Setup("gunicorn-sync"),
    Setup("gunicorn-gthread", options=("--threads", "4"), note="4 threads each"),
)
"""Who serves a Flask or a Django application as it is."""


def _framework(name: str, title: str) -> Case:
    return Case(
        name, title,
        f"Seven bytes of text by a route of {title}, 16 connections, 2 children: what an application that "
        "exists already gains where its server is changed.",
        name, FRAMEWORKS, throughput(), (RATE, P50, P99, CPU),
        compared_with={f"× {LABELS[setup.server]}": setup.label for setup in FRAMEWORKS[1:]},
    )  # fmt: skip


def _mixed_setups() -> list[Setup]:
    found = []
    for share in (0.01, 0.05, 0.2):
        text = f"{share:.0%} slow"
        ours = Setup("poolparty", "janet", children=8, connections=16, slow_share=share)
        for depth in (4, 1):
            found += _with([ours], options=("--pool-prefetch", str(depth)), note=f"{text}, prefetch {depth}")
        found += _with([Setup("original", "janet-original", 8, slow_share=share)], note=text)
    return found


def _worker_setups() -> list[Setup]:
    return [
        Setup("poolparty", "janet", children, workers, 32, note=f"{children} children, {workers} HTTP {word}")
        for children in (2, 8)
        for workers, word in ((1, "worker"), (2, "workers"))
    ]


def _grown(setups: Sequence[Setup], key: str, values: Sequence[int], **fixed: object) -> list[Setup]:
    return [
        found
        for value in values
        for found in _with(setups, **{key: value, "note": f"{value:,} {key}", **fixed})
    ]


CASES: tuple[Case, ...] = (
    Case(
        "hello", "Hello",
        "Seven bytes of text, 16 connections, 2 children.",
        "hello", EVERYBODY, throughput(), (RATE, P50, P99, CPU),
        compared_with=RATIOS, quick=True, charted=True,
    ),
    Case(
        "headers", "Hello with a browser's headers",
        "The same with the 12 header fields that a browser sends.",
        "hello", EVERYBODY, throughput(headers=BROWSER), (RATE, P50, P99, CPU),
        compared_with=RATIOS, quick=True, charted=True,
    ),
    Case(
        "10k", "10 KiB response",
        "An answer of 10 KiB, 16 connections, 2 children.",
        "10k", WITHOUT_RELAY, throughput(), (RATE, P50, P99, CPU),
        compared_with=RATIOS, quick=True, charted=True,
    ),
    Case(
        "down", "1 MiB response",
        "An answer of 1 MiB, 8 connections, 2 children.",
        "1m", _with(WITHOUT_RELAY, connections=8), throughput(), (RATE, MEGABYTES, P50, P99, CPU),
        compared_with=RATIOS, quick=True, charted=True,
    ),
    Case(
        "up", "1 MiB request",
        "A POST of 1 MiB, 8 connections, 2 children; the answer is its length.",
        "upload", _with(WITHOUT_RELAY, connections=8), throughput("POST", 1_048_576), (RATE, P50, P99, CPU),
        compared_with=RATIOS, quick=True, charted=True,
    ),
    Case(
        "sleep", "A handler of 5 ms",
        "64 children (processes, or threads where a server has them), each waiting 5 ms; 64 connections. "
        "12,800 requests/s are possible. In the asgi servers the handler awaits, which costs no process.",
        "sleep", _with(EVERYBODY, children=64, connections=64), throughput(), (RATE, P50, P99, P999, CPU),
        compared_with=RATIOS, quick=True, charted=True,
    ),
    Case(
        "overload", "Overload",
        "8 children of 5 ms can answer 1,600 requests/s; 3,200 are sent each second, whatever comes back, on "
        "up to 4,000 connections. Latencies are those of the requests answered 200, counted from when each "
        "was due. Refused is 503, an error everything else; what found all connections waiting was not sent.",
        "sleep", _with([setup for setup in WITHOUT_RELAY if setup.server not in ASYNCHRONOUS], children=8),
        measures.overload, (RATE, P50, P99, P999, REFUSED), seconds=4,
    ),
    Case(
        "mixed", "Slow among fast",
        "Handlers of 200 ms among those of 0.1 ms; 8 children, 16 connections, each sending its next request "
        "when it has its answer. What counts is how long the fast ones take.",
        "mixed", _mixed_setups(), measures.mixed, (FAST_P99, FAST_P50, FAST_P999, RATE), seconds=5,
    ),
    Case(
        "workers", "Several HTTP workers",
        "Hello, 32 connections, one and two HTTP workers.",
        "hello", _worker_setups(), throughput(), (RATE, P50, P99, CPU),
        compared_with={
            "× 1 HTTP worker, 2 children": _worker_setups()[0].label,
            "× 1 HTTP worker, 8 children": _worker_setups()[2].label,
        },
    ),
    Case(
        "connections", "16 to 2,000 connections",
        "Hello, 2 children. What a request costs the HTTP worker should not grow. "
        "Here and where an idle connection's memory is measured both run with --request-backlog 4096.",
        "hello", _grown(MANY_CONNECTIONS[::2], "connections", (16, 64, 256, 1000, 2000)),
        throughput(), (RATE, P50, P99, CPU, WORKER_CPU),
    ),
    Case(
        "children", "1 to 256 children",
        "Hello, 64 connections.",
        "hello", _grown(POOLS[::2], "children", (1, 2, 8, 32, 64, 256), connections=64),
        throughput(), (RATE, P50, P99, CPU, WORKER_CPU),
    ),
    Case(
        "idle", "Idle",
        "64 children and nobody asks: percent of one core that the server uses, and its children.",
        "hello", _with(POOLS, children=64), measures.idle,
        (Column("core", "server", "%"), Column("children_core", "children", "%")), seconds=10,
    ),
    Case(
        "growth", "Resident size after many requests",
        "Arbiter and HTTP worker together, after 10,000 requests and after 100,000.",
        "hello", POOLS, measures.growth,
        (Column("growth", "growth", "KiB"), Column("early", "after 10,000", "MiB"),
         Column("late", "after 100,000", "MiB")),
    ),
    Case(
        "memory", "Memory of an idle connection",
        f"{IDLE_CONNECTIONS:,} keep-alive connections that have had one answer each.",
        "hello", MANY_CONNECTIONS, measures.connection_memory, (Column("kib", "a connection", "KiB"),),
    ),
    _framework("flask", "Flask"),
    _framework("django", "Django"),
    Case(
        "libraries", "Worker libraries",
        "Hello under the C relay: what the child's library costs.",
        "hello", LIBRARIES, throughput(), (RATE, P50, P99, CPU),
        compared_with={"× original's library": LIBRARIES[1].label, "× minimal loop": LIBRARIES[3].label},
    ),
)  # fmt: skip
