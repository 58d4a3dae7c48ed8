"""PoolArbiter in real masters: what gunicorn's own would end or stall, and the start and end of the whole."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import poolparty

WaitFor = Callable[..., Any]
ROOT = Path(poolparty.__file__).parents[1]

APP = """
import poolparty, time, os
def handler(request):
    if request.path == "/slow":
        open("started", "w").close()
        while not os.path.exists("finish"):
            time.sleep(0.005)
    return f"{WORD} {os.getpid()}"
WORD = "first"
poolparty.serve(handler)
"""


class Server:
    """A master in a session of its own, in a directory of its own; it listens on ./http."""

    def __init__(
        self, directory: Path, wait_for: WaitFor, *options: str, before: str = "", **environ: str
    ) -> None:
        self.directory, self.wait_for = directory, wait_for
        self.log_file = directory / f"log-{time.monotonic_ns()}"
        self.listens = False
        (directory / "app.py").exists() or (directory / "app.py").write_text(APP)
        program = directory.parent / f"{self.log_file.name}.py"  # a file, which an upgrade can start again
        program.write_text(f"{before}\nfrom poolparty.cli import main\nmain()")
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(program), "--listen-address", "unix:http", *options],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait_log(self, text: str, count: int = 1) -> None:
        self.wait_for(
            lambda: self.log.count(text) >= count, lambda: f"{count} times {text!r} in the log:\n{self.log}"
        )

    def open(self, path: str = "/") -> socket.socket:
        """Send a request; the connection."""
        if not self.listens:
            self.wait_log("Listening at")
            self.listens = True
        client = socket.socket(socket.AF_UNIX)
        try:
            client.settimeout(10)
            client.connect(str(self.directory / "http"))
        except BaseException:
            client.close()
            raise
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        return client

    @staticmethod
    def read(client: socket.socket) -> str:
        with client:
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return answer.partition(b"\r\n\r\n")[2].decode()

    def get(self, path: str = "/") -> str:
        return self.read(self.open(path))

    def http_workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = []
        for pid in children:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has gone meanwhile
                if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
        return found

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 10) -> int:
        return self.process.wait(timeout)

    def session(self) -> list[int]:
        """Processes of it that still run."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def end(self) -> None:
        for pid in self.session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, wait_for: WaitFor) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(*options: str, command: tuple[str, ...] = (sys.executable, "app.py"), **more: str) -> Server:
        made.append(Server(tmp_path, wait_for, *options, *(("--", *command) if command else ()), **more))
        return made[-1]

    yield make
    for one in made:
        one.end()


class TestStart:
    def test_it_serves_and_leaves_nothing(self, server: Any, tmp_path: Path) -> None:
        one = server()
        assert one.get().startswith("first")
        one.signal(signal.SIGTERM)
        assert one.wait() == 0
        assert not one.session()
        assert {path.name for path in tmp_path.iterdir()} == {"app.py", one.log_file.name}
        assert "ERROR" not in one.log and "Traceback" not in one.log

    def test_a_control_socket_in_use_ends_the_start_with_a_sentence(
        self, server: Any, tmp_path: Path
    ) -> None:
        first = server()
        first.get()
        second = server("--bind", "unix:other", "--pid", "pidfile")
        assert second.wait() == 1
        assert "Error: ctl_socket" in second.log and "Traceback" not in second.log
        assert not (tmp_path / "pidfile").exists()
        assert first.get()

    def test_stock_gunicorn_is_turned_into_ours(self, tmp_path: Path, wait_for: WaitFor) -> None:
        before = "import poolparty.settings, sys\nfrom gunicorn.app.wsgiapp import run as main"
        (tmp_path / "main.py").write_text("")
        one = Server(
            tmp_path,
            wait_for,
            *("-k", "poolparty.GWorker", "--no-control-socket", "--pool-cmd", f"{sys.executable} app.py"),
            before=before + "\nsys.argv[0] = 'gunicorn'; main(); sys.exit()",
        )
        try:
            assert one.get().startswith("first")
            one.signal(signal.SIGTERM)
            assert one.wait() == 0
            assert not one.session()
        finally:
            one.end()

    def test_ready_is_told_when_the_first_child_is(self, server: Any, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "gate")
        (tmp_path / "app.py").write_text("open('gate').read()\n" + APP)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(tmp_path / "notify"))
            notify.settimeout(10)
            one = server(NOTIFY_SOCKET=str(tmp_path / "notify"))
            one.wait_log("Booting worker")
            notify.settimeout(0.3)
            with pytest.raises(TimeoutError):
                notify.recv(100)
            notify.settimeout(10)
            (tmp_path / "gate").write_text("go")
            assert notify.recv(100).startswith(b"READY=1")
        assert "NOTIFY_SOCKET" not in one.log


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_running_request_is_finished_first(
        self, server: Any, tmp_path: Path, wait_for: WaitFor, number: signal.Signals
    ) -> None:
        one = server()
        client = one.open("/slow")
        wait_for(lambda: (tmp_path / "started").exists())
        one.signal(number)
        one.wait_log("Handling signal")
        (tmp_path / "finish").touch()
        assert one.read(client).startswith("first")
        assert one.wait() == 0
        assert not one.session()

    @pytest.mark.parametrize(
        "numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGQUIT), (signal.SIGQUIT,)]
    )
    def test_the_second_signal_is_quick(
        self, server: Any, tmp_path: Path, wait_for: WaitFor, numbers: tuple[signal.Signals, ...]
    ) -> None:
        one = server()
        with one.open("/slow"):
            wait_for(lambda: (tmp_path / "started").exists())
            for number in numbers:
                one.signal(number)
                one.wait_log("Handling signal")
            began = time.monotonic()
            assert one.wait() == 0
            assert time.monotonic() - began < 4
        assert not one.session()

    def test_quick_also_while_children_are_ended(self, server: Any, tmp_path: Path) -> None:
        (tmp_path / "app.py").write_text(
            "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + APP
        )
        one = server("--worker-request-grace", "60s")
        one.get()
        one.signal(signal.SIGINT)
        one.wait_log("Worker exiting")
        one.signal(signal.SIGINT)
        assert one.wait() == 0
        assert not one.session()

    @pytest.mark.parametrize("program", [APP, "while True: pass"], ids=["idle", "in an endless loop"])
    def test_nothing_outlives_the_arbiter(
        self, server: Any, tmp_path: Path, wait_for: WaitFor, program: str
    ) -> None:
        (tmp_path / "app.py").write_text(program)
        one = server("--workers", "2", "--min-pool-size", "2", "--max-pool-size", "2")
        one.wait_log("Booting worker", count=2)
        one.wait_log("worker spawned", count=2)
        one.process.kill()
        one.wait()
        wait_for(lambda: not one.session(), deadline=5)
        (tmp_path / "app.py").write_text(APP)
        (tmp_path / "http").unlink()
        again = server()
        assert again.get().startswith("first")

    def test_a_hook_that_hangs_in_a_new_http_worker_does_not_hide_the_arbiters_death(
        self, server: Any, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        hook = (
            "import os, time\n"
            "def post_fork(arbiter, worker):\n"
            "    if worker.age > 1: open('hangs', 'w').close(); time.sleep(60)\n"
        )
        (tmp_path / "poolparty.conf.py").write_text(hook)
        one = server()
        one.get()
        (http_worker,) = one.http_workers()
        one.signal(signal.SIGTTIN)
        wait_for(lambda: (tmp_path / "hangs").exists())
        one.process.kill()
        one.wait()
        wait_for(lambda: http_worker not in one.session(), deadline=5)

    def test_an_http_worker_sees_the_arbiters_death_though_its_channel_stays_open(
        self, server: Any, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        (tmp_path / "poolparty.conf.py").write_text(
            "import subprocess\n"
            "def pre_fork(arbiter, worker):\n"
            "    subprocess.Popen(['sleep', '60'], pass_fds=[worker.seat.arbiter_end.fileno()])\n"
        )
        one = server()
        one.get()
        (http_worker,) = one.http_workers()
        one.process.kill()
        one.wait()
        wait_for(lambda: http_worker not in one.session(), deadline=5)
        assert "the arbiter has died" in one.log

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
    @pytest.mark.parametrize("hook", ["post_fork(arbiter, worker)", "post_worker_init(worker)"])
    def test_a_signal_that_comes_while_an_http_worker_starts_is_not_lost(
        self, server: Any, tmp_path: Path, wait_for: WaitFor, hook: str, number: signal.Signals
    ) -> None:
        (tmp_path / "poolparty.conf.py").write_text(
            f"import os\ndef {hook}:\n    if worker.age == 1: os.kill(os.getpid(), {number:d})\n"
        )
        one = server()
        wait_for(lambda: one.log.count("Booting worker") > 1 or "was sent" in one.log)
        assert one.get()

    def test_logs_are_reopened_though_sigusr1_came_while_an_http_worker_started(
        self, server: Any, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        (tmp_path / "poolparty.conf.py").write_text(
            "import os, signal\ndef post_fork(arbiter, worker): os.kill(os.getpid(), signal.SIGUSR1)\n"
        )
        before = (
            "import os\n"
            "from poolparty import log_files\n"
            "real = log_files.reopen\n"
            "def reopen(log): real(log); open(f'reopened-{os.getpid()}', 'w').close()\n"
            "log_files.reopen = reopen"
        )
        one = server(before=before)
        one.get()
        (http_worker,) = one.http_workers()
        wait_for((tmp_path / f"reopened-{http_worker}").exists)

    def test_an_http_worker_that_missed_the_signal_is_told_again(
        self, server: Any, wait_for: WaitFor
    ) -> None:
        before = (
            "import poolparty.worker.gworker as g, signal\n"
            "real = g.GWorker._on_term\n"
            "missed = []\n"
            "def hard_of_hearing(self): real(self) if missed else missed.append(1)\n"
            "g.GWorker._on_term = hard_of_hearing"
        )
        one = server(before=before)
        one.get()
        one.signal(signal.SIGTERM)
        assert one.wait() == 0


class TestReload:
    def test_http_workers_and_children_are_replaced_and_nothing_is_lost(
        self, server: Any, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        one = server("--workers", "2")
        first = one.get()
        wait_for(lambda: len(one.http_workers()) == 2)
        old = set(one.http_workers())
        (tmp_path / "app.py").write_text(APP.replace("first", "second"))
        one.signal(signal.SIGHUP)
        wait_for(lambda: one.get().startswith("second"))
        wait_for(lambda: not set(one.http_workers()) & old and len(one.http_workers()) == 2)
        assert one.get() != first
        one.wait_log("The workers are those of the new configuration")

    @pytest.mark.parametrize(
        "broken",
        [
            "max_pool_size = 0",
            "syntax error",
            "import sys; sys.exit(3)",
            "pool_cmd = 'no-such-program'",
            "bind = 'unix:/no/where'",
        ],
    )
    def test_a_broken_configuration_leaves_the_old_one(
        self, server: Any, tmp_path: Path, wait_for: WaitFor, broken: str
    ) -> None:
        good = f"pool_cmd = [{sys.executable!r}, 'app.py']\nbind = 'unix:http'\n"
        (tmp_path / "poolparty.conf.py").write_text(good)
        one = server(command=())
        before = one.get()
        (tmp_path / "poolparty.conf.py").write_text(broken)
        one.signal(signal.SIGHUP)
        one.wait_log("goes on with the old one")
        assert one.get() == before
        (tmp_path / "poolparty.conf.py").write_text(good + "max_pool_size = 2\n")
        one.signal(signal.SIGHUP)
        wait_for(lambda: one.get() != before)
        one.signal(signal.SIGTERM)
        assert one.wait() == 0

    def test_a_command_that_does_not_boot_leaves_the_old_children(
        self, server: Any, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        one = server()
        before = one.get()
        (tmp_path / "app.py").write_text("raise SystemExit('broken app')")
        one.signal(signal.SIGHUP)
        one.wait_log("stay those of the old configuration")
        assert "broken app" in one.log
        assert one.get() == before

    def test_http_workers_that_do_not_boot_leave_the_old_ones(
        self, server: Any, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        hook = (
            "import os\n"
            "def post_fork(arbiter, worker):\n"
            "    if os.path.exists('broken'): raise ValueError('hook')\n"
        )
        (tmp_path / "poolparty.conf.py").write_text(hook)
        one = server()
        one.get()
        (tmp_path / "broken").touch()
        one.signal(signal.SIGHUP)
        one.wait_log("did not boot; next try in 1 s")
        assert one.get()
        (tmp_path / "broken").unlink()
        old = one.http_workers()
        wait_for(lambda: one.http_workers() and not set(one.http_workers()) & set(old))
        assert one.get()

    def test_addresses_can_be_added_and_taken_away(
        self, server: Any, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        conf = f"pool_cmd = [{sys.executable!r}, 'app.py']\nbind = "
        (tmp_path / "poolparty.conf.py").write_text(conf + "['unix:http']")
        one = Server(tmp_path, wait_for, before="import sys; sys.argv[1:] = []")
        try:
            one.get()
            (tmp_path / "poolparty.conf.py").write_text(conf + "['unix:http', 'unix:more']")
            one.signal(signal.SIGHUP)
            wait_for(lambda: (tmp_path / "more").exists())
            assert one.get()
            one.signal(signal.SIGTERM)
            assert one.wait() == 0
            assert not (tmp_path / "more").exists()
        finally:
            one.end()


class TestForks:
    def test_a_fork_that_fails_is_tried_again(self, server: Any) -> None:
        before = (
            "import os; real = os.fork; left = [1]\n"
            "def fork():\n"
            "    if left: left.pop(); raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
            "    return real()\n"
            "os.fork = fork"
        )
        one = server(before=before)
        one.wait_log("could not be started")
        assert one.get().startswith("first")

    def test_an_http_worker_that_never_boots_ends_the_start(self, server: Any, tmp_path: Path) -> None:
        (tmp_path / "poolparty.conf.py").write_text(
            "def post_fork(arbiter, worker): raise ValueError('hook')\n"
        )
        one = server()
        assert one.wait() == 3
        assert "Worker failed to boot" in one.log
        assert not one.session()

    def test_an_http_worker_that_cannot_listen_has_not_booted(self, server: Any) -> None:
        before = (
            "import poolparty.worker.gworker as g\n"
            "async def broken(self): raise OSError('no socket for you')\n"
            "g.GWorker._serve = broken"
        )
        one = server(before=before)
        one.wait_log("An HTTP worker did not boot; next try in 1 s")

    def test_http_workers_that_die_young_do_not_eat_the_machine(self, server: Any, tmp_path: Path) -> None:
        (tmp_path / "poolparty.conf.py").write_text(
            "def post_worker_init(worker):\n"
            "    import os\n"
            "    board = worker.seat.scoreboard\n"
            "    board.words[board.seat_base(worker.seat.id)] = os.getpid()\n"
            "    os._exit(1)\n"
        )
        one = server()
        one.wait_log("exited with code 1", count=3)
        time.sleep(0.5)
        assert one.log.count("Booting worker") <= 3

    def test_an_http_worker_that_is_killed_is_replaced(self, server: Any, wait_for: WaitFor) -> None:
        one = server()
        one.get()
        (old,) = one.http_workers()
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: one.http_workers() not in ([], [old]))
        assert one.get()
        assert one.log.count("worker spawned") == 1, "its idle child was lent again"

    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
    def test_http_workers_that_work_are_replaced_at_once_however_young_they_die(
        self, server: Any, wait_for: WaitFor, number: int
    ) -> None:
        """Each that was killed within five seconds doubled the wait for the next one, up to half a minute."""
        one = server()
        began = time.monotonic()
        for _ in range(5):
            assert one.get()
            (old,) = one.http_workers()
            os.kill(old, number)
            wait_for(lambda old=old: one.http_workers() not in ([], [old]))
        assert one.get()
        assert time.monotonic() - began < 10

    def test_an_http_worker_holds_nothing_of_the_arbiters(self, server: Any, tmp_path: Path) -> None:
        one = server("--workers", "2", "--min-pool-size", "3", "--max-pool-size", "3")
        one.get()
        one.wait_for(lambda: len(one.http_workers()) == 2)
        arbiters = set(_open_files(one.process.pid, "pipe:")) - set(_open_files(os.getpid(), "pipe:"))
        for pid in one.http_workers():
            # The two ends of at most one lease.
            one.wait_for(lambda: len(arbiters.intersection(_open_files(pid, "pipe:"))) <= 2)  # noqa: B023
            channels = {f"socket:[{number}]" for number in _seqpackets()}
            assert len(channels.intersection(_open_files(pid, "socket:"))) == 1

    def test_more_http_workers_by_ttin_and_fewer_by_ttou(self, server: Any, wait_for: WaitFor) -> None:
        one = server()
        one.get()
        one.signal(signal.SIGTTIN)
        wait_for(lambda: len(one.http_workers()) == 2)
        one.signal(signal.SIGTTOU)
        wait_for(lambda: len(one.http_workers()) == 1)
        assert one.get()


class TestUpgrade:
    """USR2 starts a second server on the same sockets; one of the two then leaves."""

    def upgrade(self, one: Server) -> int:
        one.get()
        one.signal(signal.SIGUSR2)
        one.wait_log("worker spawned", count=2)
        one.wait_log("Booting worker", count=2)
        (new,) = {
            int(line.split("(")[1].split(")")[0]) for line in one.log.splitlines() if "Listening" in line
        } - {one.process.pid}
        return new

    def ctl(self, one: Server) -> dict[str, str]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(one.directory / "poolparty.sock"))
            client.sendall(b"stats\nexit\n")
            text = client.makefile().read()
        return dict(line.split("=", 1) for line in text.splitlines() if line.count("=") == 1)

    def test_the_new_server_takes_over(self, server: Any, tmp_path: Path, wait_for: WaitFor) -> None:
        one = server()
        new = self.upgrade(one)
        wait_for(lambda: self.ctl(one)["worker-spawns"] == "1")
        one.signal(signal.SIGTERM)
        assert one.wait() == 0
        assert one.get().startswith("first")
        assert self.ctl(one)["workers"] == "1", "its control socket is still there"
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: not one.session())
        assert not (tmp_path / "poolparty.sock").exists()

    def test_the_old_server_stays_if_the_new_one_ends(
        self, server: Any, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        one = server()
        new = self.upgrade(one)
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{new}").exists())
        wait_for(lambda: (tmp_path / "poolparty.sock").exists())
        assert self.ctl(one)["workers"] == "1"
        assert one.get().startswith("first")

    def test_a_new_server_whose_children_do_not_boot_accepts_nothing(
        self, server: Any, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        one = server()
        one.get()
        (tmp_path / "app.py").write_text("raise SystemExit('broken app')")
        one.signal(signal.SIGUSR2)
        one.wait_log("worker died before it was ready", count=2)
        assert one.log.count("Booting worker") == 1
        assert all(one.get().startswith("first") for _ in range(10))


def _open_files(pid: int, kind: str) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(link))
    return [target for target in found if target.startswith(kind)]


def _seqpackets() -> list[str]:
    """Inodes of all SOCK_SEQPACKET sockets there are."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return [line.split()[6] for line in lines if line.split()[4] == "0005"]
