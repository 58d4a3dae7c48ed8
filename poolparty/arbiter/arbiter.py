"""PoolArbiter: gunicorn's arbiter with a pool of children beside its HTTP workers. Runs in the master's main
thread.

Each method here either gives the pool its part in something (start, forks, reaping, reload, stop) or mends
what gunicorn 27.0.1 does in a way that would end or stall a server: a reload with a broken configuration
exits, and waits up to graceful_timeout on this thread; a fork that fails with EAGAIN exits; an HTTP worker
that does not boot stops everything however long the server has run; a draining worker is counted as one that
serves.

With the `poolparty` command it is a PoolArbiter from the start. With stock gunicorn GWorker.check_config
calls `check_config` here, which has the hook `when_ready` turn the instance into one, before the first fork.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from gunicorn import sock, systemd
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.errors import HaltServer
from gunicorn.pidfile import Pidfile

from poolparty import log_files
from poolparty.arbiter.children import logfmt
from poolparty.arbiter.pool_thread import PoolThread, Seat
from poolparty.arbiter.relay import printable
from poolparty.arbiter.seats import FORK_BLOCKS
from poolparty.arbiter.title import set_title
from poolparty.arbiter.watcher import Watched, Watcher
from poolparty.errors import ConfigError
from poolparty.pools import PoolConfig, pool_configs
from poolparty.settings import serves_a_pool

MAX_BOOT_DELAY = 30.0
"""Seconds between two tries to start HTTP workers that do not boot; the first is after one, then doubled."""

TELL_AGAIN = 0.5
"""Seconds until an HTTP worker that has to leave is told so again: while it sets up its handlers it hears
nothing, and to be told twice changes nothing."""

YOUNG = 5.0
"""Seconds: an HTTP worker that dies younger, and has answered nobody, counts as one that does not work."""

DRAIN_MARGIN = 5.0
"""Seconds beyond graceful_timeout after which an HTTP worker that drains is killed: it ends itself before."""

KILLED_WAIT = 5.0
"""Seconds to wait for processes that were sent SIGKILL."""

TITLE_INTERVAL = 1.0
"""Seconds between two looks at what the process title says."""

MAX_TITLE_NAME = 64
"""Characters of proc_name that are shown."""

QUICK_STOP = 2.0
"""Seconds HTTP workers have to leave once a stop has become quick, as gunicorn has it."""


def check_config(cfg: Config, log: Any) -> None:
    """For GWorker.check_config: in the master, before the arbiter is ready. Exits the start with one
    sentence."""
    try:
        pool_configs(cfg)
    except ConfigError as error:
        raise RuntimeError(str(error)) from None
    users = cfg.when_ready
    if getattr(users, "adopts", False):
        return

    def when_ready(server: Arbiter) -> None:
        adopt(server)
        users(server)

    when_ready.adopts = True  # type: ignore[attr-defined]
    cfg.set("when_ready", when_ready)


def adopt(arbiter: Arbiter) -> None:
    """Turn a stock arbiter that has just started into a PoolArbiter, and start its pool."""
    if isinstance(arbiter, PoolArbiter):
        return
    arbiter.__class__ = PoolArbiter
    try:
        arbiter.claim_pool()
    except ConfigError as error:
        # It has bound its sockets and written its pid already, and run() is not yet where it would clean up.
        sock.close_sockets(arbiter.LISTENERS, not arbiter.systemd and arbiter.master_pid == 0)
        if arbiter.pidfile is not None:
            arbiter.pidfile.unlink()
        raise RuntimeError(str(error)) from None
    arbiter.start_pool()


class PoolArbiter(Arbiter):
    """The pool is made by claim_pool, since __init__ runs for a part of the instances only."""

    pool: PoolThread
    # gunicorn's, said here for mypy.
    LISTENERS: list[Any]
    pidfile: Pidfile | None
    reexec_pid: int
    master_pid: int
    _last_logged_active_worker_count: int | None

    # --- start ---------------------------------------------------------------------------------------------

    def claim_pool(self) -> None:
        """Make the pool and take its control socket. ConfigError: the path is in use."""
        self.pool = PoolThread(
            pool_configs(self.cfg), self.cfg, self.log, on_failure=self.wakeup, on_ready=self.wakeup
        )
        self.seats: dict[int, Seat] = {}  # by the pid of the HTTP worker
        self.draining: dict[int, float] = {}  # HTTP workers told to leave, and when
        self.stale_age = 0  # HTTP workers up to this age are to be replaced: a reload is under way
        self.served = False  # whether any HTTP worker had booted when the last one ended
        self.boot_failures = 0
        self.not_before = 0.0  # no HTTP worker is started before this time
        self.stopping = False
        self.quick = False
        self.ready_told = True
        self.title = ""
        self.title_due = 0.0
        self.watcher: Watcher | None = None
        self.pool.claim(takeover="GUNICORN_PID" in os.environ)

    def start_pool(self) -> None:
        self.pool.start()
        self.watch()

    def start(self) -> None:
        """As gunicorn's, but ready is told when a child is, and the control socket's path is taken before all
        else."""
        try:
            self.claim_pool()
        except ConfigError as error:
            raise RuntimeError(str(error)) from None
        notify = os.environ.pop("NOTIFY_SOCKET", None)
        try:
            super().start()
        except BaseException:
            self.pool.stop(False)
            raise
        finally:
            if notify is not None:
                os.environ["NOTIFY_SOCKET"] = notify
        self.ready_told = False
        self.start_pool()

    def maybe_promote_master(self) -> None:
        """Called first in each round of gunicorn's main loop, and so our part of it too."""
        super().maybe_promote_master()
        self.reap_workers()  # SIGCHLD only makes it sooner: signals of one kind merge
        if self.pool.failure is not None:
            raise HaltServer(f"The pool thread failed: {self.pool.failure!r}", 1)
        if not self.ready_told and self.pool.ready:
            self.ready_told = True
            systemd.sd_notify("READY=1\nSTATUS=Poolparty serves", self.log)
        self.show_state()

    def show_state(self) -> None:
        """For ps and top: how busy the pool is, brought up to date once a second at most."""
        now = time.monotonic()
        if now < self.title_due:
            return
        self.title_due = now + TITLE_INTERVAL
        name = self.cfg.settings["proc_name"].get()
        title = "poolparty: "
        title += f"{self.master_name.lower()}, " if self.master_name != "Master" else ""
        title += self.pool.describe()
        title += f" [{printable(name.encode())[:MAX_TITLE_NAME]}]" if name else ""
        if title != self.title:
            self.title = title
            set_title(title)

    # --- HTTP workers --------------------------------------------------------------------------------------

    def spawn_worker(self) -> int | None:
        """Fork an HTTP worker with a seat. None: there was no room for one; it is tried again later."""
        parent = os.getpid()
        seat = None
        try:
            seat = self.pool.open_seat()
            self.worker_class = functools.partial(self.cfg.worker_class, seat=seat)
            signal.pthread_sigmask(signal.SIG_BLOCK, FORK_BLOCKS)  # see Seat.enter_worker
            pid: int = super().spawn_worker()
        except BaseException as error:
            # The HTTP worker itself leaves through here, by SystemExit: it has nothing to put back.
            if os.getpid() != parent:
                raise
            if seat is not None:
                self.pool.abandon_seat(seat)
            if not isinstance(error, OSError):
                raise
            delay = self.delay_spawning()
            self.log.error("An HTTP worker could not be started (%s); next try in %g s", error, delay)
            return None
        finally:
            if os.getpid() == parent:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, FORK_BLOCKS)
        seat.forked(pid)
        self.seats[pid] = seat
        return pid

    def spawn_workers(self) -> None:
        if time.monotonic() < self.not_before:
            return
        if self.master_pid and not self.pool.ready:
            return  # an upgrade: the old server answers until there is a child that could
        for _ in range(self.num_workers - len(self.serving())):
            if self.spawn_worker() is None:
                break

    def serving(self) -> list[int]:
        """HTTP workers that are to stay, oldest first."""
        workers = sorted(self.WORKERS.items(), key=lambda item: item[1].age)
        return [pid for pid, worker in workers if pid not in self.draining and worker.age > self.stale_age]

    def delay_spawning(self) -> float:
        """After a failure: how long until the next try."""
        delay = min(2.0**self.boot_failures, MAX_BOOT_DELAY)
        self.boot_failures = min(self.boot_failures + 1, 10)
        self.not_before = time.monotonic() + delay
        return delay

    def manage_workers(self) -> None:
        """Keep num_workers of them beside those that drain; after a reload the old ones stay until the new
        ones serve."""
        if len(self.serving()) < self.num_workers:
            self.spawn_workers()
        serving = self.serving()
        booted = [pid for pid in serving if self.seats[pid].booted]
        now = time.monotonic()
        if any(now - self.seats[pid].opened_at > YOUNG for pid in booted):
            self.boot_failures = 0
        leaving = serving[: max(len(serving) - self.num_workers, 0)]
        if len(booted) >= self.num_workers:
            leaving += [pid for pid, worker in self.WORKERS.items() if worker.age <= self.stale_age]
        for pid in leaving:
            self.draining.setdefault(pid, now)
        for pid, since in list(self.draining.items()):
            # Said again each time: one that is just setting up its handlers may have missed it.
            late = now > since + self.cfg.graceful_timeout + DRAIN_MARGIN
            self.kill_worker(pid, signal.SIGKILL if late else signal.SIGTERM)
        self.tell_metrics()

    def tell_metrics(self) -> None:
        """gunicorn's own gauges, for its own statsd logger; and to the pool what it cannot see."""
        count = len(self.serving())
        if count != self._last_logged_active_worker_count:
            self._last_logged_active_worker_count = count
            self.log.debug(
                f"{count} workers", extra={"metric": "gunicorn.workers", "value": count, "mtype": "gauge"}
            )
        self.pool.listen_backlog = None
        if self.cfg.enable_backlog_metric:
            backlog = sum(max(listener.get_backlog() or 0, 0) for listener in self.LISTENERS)
            self.pool.listen_backlog = backlog
            self.log.debug(
                f"socket backlog: {backlog}",
                extra={"metric": "gunicorn.backlog", "value": backlog, "mtype": "histogram"},
            )

    def kill_worker(self, pid: int, sig: int) -> None:
        """One that has ended can still be signalled until it is reaped."""
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            if pid in self.WORKERS:
                self.worker_ended(pid, 0)  # somebody's hook has waited for it
            return
        if sig in (signal.SIGTERM, signal.SIGKILL):
            self._stats["workers_killed"] += 1

    def reap_workers(self) -> None:
        """Take each process that has ended to its one home: the pool, or ours. Nobody else waits for any
        process."""
        while True:
            with self.pool.lock:
                try:
                    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    return
                if ended is None:
                    return
                if self.pool.child_exited(ended.si_pid):
                    continue
                pid, status = os.waitpid(ended.si_pid, os.WNOHANG)
            if pid:
                self.worker_ended(pid, status)

    def worker_ended(self, pid: int, status: int) -> None:
        """A process that is no child of the pool has been reaped."""
        if pid == self.reexec_pid:
            self.reexec_pid = 0
            if not self.stopping:
                self.take_control_back()
            return
        if pid == self.dirty_arbiter_pid:
            self.handle_dirty_arbiter_exit(pid, status)
            return
        worker = self.WORKERS.pop(pid, None)
        if worker is None:
            # An orphan that the kernel gave to us as process 1.
            self.log.debug("Reaped unknown child process (pid:%s, status:%s)", pid, status)
            return
        seat = self.seats.pop(pid)
        self.pool.seat_reaped(seat)
        self.served = self.served or any(one.booted for one in (seat, *self.seats.values()))
        draining = self.draining.pop(pid, None) is not None
        self.log_worker_exit(pid, status)
        worker.tmp.close()
        self.cfg.child_exit(self, worker)
        if draining or self.stopping:
            return
        if seat.booted:
            # Like a child that has answered, one that has is replaced at once: it works. So is one that was
            # killed: nobody does that to himself.
            if seat.answered or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                self.boot_failures = 0
            elif time.monotonic() - seat.opened_at < YOUNG:
                if self.boot_failures:
                    self.delay_spawning()
                self.boot_failures = max(self.boot_failures, 1)  # the first is replaced at once
            return
        code = os.waitstatus_to_exitcode(status)
        if not self.served and code == self.WORKER_BOOT_ERROR:
            raise HaltServer("Worker failed to boot.", self.WORKER_BOOT_ERROR)
        if not self.served and code == self.APP_LOAD_ERROR:
            raise HaltServer("App failed to load.", self.APP_LOAD_ERROR)
        self.log.error("An HTTP worker did not boot; next try in %g s", self.delay_spawning())

    def take_control_back(self) -> None:
        """The server of an upgrade has ended: its control socket is gone, and ours is to be found again."""
        try:
            self.pool.claim(takeover=True)
        except ConfigError as error:
            self.log.error("The control socket is lost after an upgrade that failed: %s", error)

    def log_worker_exit(self, pid: int, status: int) -> None:
        """In gunicorn's words, which people search for."""
        code = os.waitstatus_to_exitcode(status)
        if code > 0:
            self.log.error("Worker (pid:%s) exited with code %s.", pid, code)
        elif code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            if -code == signal.SIGKILL:
                self.log.error("Worker (pid:%s) was sent %s! Perhaps out of memory?", pid, name)
            elif -code == signal.SIGTERM:
                self.log.info("Worker (pid:%s) was sent %s!", pid, name)
            else:
                self.log.warning("Worker (pid:%s) was sent %s!", pid, name)

    # --- signals -------------------------------------------------------------------------------------------

    def handle_int(self) -> None:
        """Drain, as at SIGTERM; a second one, seen in `stop`, is quick."""
        raise StopIteration

    def handle_usr1(self) -> None:
        """Reopen the log files, here and in the HTTP workers."""
        log_files.reopen(self.log)
        self.kill_workers(signal.SIGUSR1)

    def handle_winch(self) -> None:
        """Drain the HTTP workers, as in an upgrade; gunicorn does so only when daemonised, to spare resized
        terminals."""
        if not self.cfg.daemon and os.isatty(sys.stdin.fileno() if sys.stdin is not None else -1):
            self.log.debug("SIGWINCH ignored: it is a terminal's")
            return
        self.log.info("graceful stop of workers")
        self.num_workers = 0
        self.manage_workers()

    # --- upgrade -------------------------------------------------------------------------------------------

    def reexec(self) -> None:
        """Start a second arbiter. gunicorn tells it that systemd's sockets are descriptors 3 and on, where
        they have not been since it took them over: they are put there."""
        hook = self.cfg.settings["pre_exec"]
        users = hook.get()

        def pre_exec(server: Arbiter) -> None:
            users(server)
            if server.systemd:
                _number_from_3([listener.fileno() for listener in server.LISTENERS])

        hook.set(pre_exec)
        try:
            super().reexec()
        finally:
            hook.set(users)

    # --- reload --------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Load the new configuration first and keep the old one on any error; then replace HTTP workers and
        children.

        Nothing is waited for: manage_workers ends the old HTTP workers once the new ones serve.
        """
        old_cfg = self.cfg
        listeners = None
        with _Restored(self.app) as restored:
            pools = self.load_config()
            if pools is not None:
                listeners = self.new_listeners(old_cfg)
            if pools is None or listeners is None:
                return
            restored.keep()
        self._stats["reloads"] += 1
        self.pool.relay.hold()
        try:
            self.setup(self.app)
            log_files.reopen(self.log)
        finally:
            self.pool.relay.resume()
        for listener in self.LISTENERS:
            if listener not in listeners:
                listener.close()
        if listeners != self.LISTENERS:
            self.LISTENERS = listeners
            self.log.info("Listening at: %s", ",".join(str(listener) for listener in listeners))
        try:
            self.cfg.on_reload(self)
            self.renew_pidfile()
        except Exception:
            self.log.exception("The reload goes on without what failed here")
        self.stale_age = self.worker_age
        self.boot_failures, self.not_before = 0, 0.0
        for name in ("ctl_socket", "ctl_socket_group"):
            if getattr(pools[0].options, name) != getattr(self.pool.options, name):
                self.log.warning("%s stays what it was at the start; restart the server to change it", name)
        self.pool.reload(pools, self.cfg, self.reloaded)
        self.watch()
        self.manage_workers()

    def renew_pidfile(self) -> None:
        """The configuration may name another one."""
        if self.pidfile is not None:
            self.pidfile.unlink()
            self.pidfile = None
        if self.cfg.pidfile is not None:
            pidfile = Pidfile(self.cfg.pidfile)
            pidfile.create(self.pid)
            self.pidfile = pidfile

    def reloaded(self, error: str | None) -> None:
        """Called in the pool thread when the children are replaced, or not."""
        if error is None:
            self.pool.log.info("The workers are those of the new configuration")
        else:
            level = logging.INFO if self.pool.stopping else logging.ERROR
            self.pool.log.log(level, "The workers stay those of the old configuration: %s", error)

    def watch(self) -> None:
        """Development: have the children restarted when the application's files change."""
        if self.watcher is not None:
            self.watcher.stop()
            self.watcher = None
        if self.cfg.reload:
            self.pool.log.warning(
                "Reloader is on: clients see what a failing application says. Development only!"
            )
            watched = Watched.of_pools([pool.config for pool in self.pool.pools])
            polling = self.cfg.reload_engine == "poll"
            self.watcher = Watcher(watched, self.application_changed, self.pool.log, polling)

    def application_changed(self, path: str) -> None:
        """Called in the watcher's thread."""
        with self.pool.lock:
            self.pool.restart_workers(self.restarted, f"the application has changed: {os.path.relpath(path)}")

    def restarted(self, error: str | None) -> None:
        """Called in the pool thread."""
        if error is None:
            self.pool.log.info('msg="the workers are restarted"')
        else:
            self.pool.log.error("%s", logfmt("the workers are not restarted", reason=error))

    def load_config(self) -> tuple[PoolConfig, ...] | None:
        """Read the configuration anew into self.app.cfg, from where the server was started. None: it cannot
        be used."""
        with contextlib.suppress(OSError):  # gone: what is relative then is relative to where we are
            os.chdir(self.START_CTX["cwd"])
        try:
            self.app.load_default_config()
            self.app.load_config()
            self.app.cfg.validate()
            if not serves_a_pool(self.app.cfg):
                raise ConfigError(
                    f"worker_class = {self.app.cfg.worker_class_str}: only a restart can change it."
                )
            pools = pool_configs(self.app.cfg)
            refusal = self.pool.why_no_reload(pools)
            if refusal is not None:
                raise ConfigError(f"pools: {refusal}.")
            return pools
        except SystemExit:
            # Whoever exits has said why on standard error.
            self.log.error("The new configuration cannot be read; the server goes on with the old one")
        except Exception as error:
            self.log.error(
                "The new configuration cannot be used; the server goes on with the old one: %s", error
            )
        return None

    def new_listeners(self, old_cfg: Config) -> list[Any] | None:
        """The sockets of self.app.cfg, those that stay taken over. None: one of them cannot be had."""
        cfg = self.app.cfg
        if cfg.address == old_cfg.address or cfg.reuse_port:
            return list(self.LISTENERS)
        stay = {listener.cfg_addr: listener for listener in self.LISTENERS}
        opened = []
        listeners = []
        try:
            for address in cfg.address:
                if address not in stay:
                    opened += sock.create_sockets(_OneAddress(cfg, address), self.log)
                    listeners.append(opened[-1])
                else:
                    listeners.append(stay[address])
        except (Exception, SystemExit) as error:
            for listener in opened:
                listener.close()
            self.log.error(
                "The new addresses cannot be served; the server goes on with the old ones: %s", error
            )
            return None
        return listeners

    # --- stop ----------------------------------------------------------------------------------------------

    def handle_quit(self) -> None:
        self.quick = True
        raise StopIteration

    def stop(self, graceful: bool = True) -> None:
        """HTTP workers first, which need the children for what they run, then the children. SIGINT or SIGQUIT
        hurries."""
        unlink = self.reexec_pid == self.master_pid == 0 and not self.systemd and not self.cfg.reuse_port
        sock.close_sockets(self.LISTENERS, unlink)
        self.LISTENERS = []
        self.stopping = True
        set_title("poolparty: stopping")
        if self.watcher is not None:
            self.watcher.stop()
        self.quick = self.quick or not graceful
        limit = time.monotonic() + (QUICK_STOP if self.quick else self.cfg.graceful_timeout)
        self.kill_workers(signal.SIGQUIT if self.quick else signal.SIGTERM)
        again = time.monotonic() + TELL_AGAIN
        while self.WORKERS and time.monotonic() < limit:
            if self.hurried(0.1):
                limit = time.monotonic() + QUICK_STOP
                again = 0.0
            if time.monotonic() >= again:
                self.kill_workers(signal.SIGQUIT if self.quick else signal.SIGTERM)
                again = time.monotonic() + TELL_AGAIN
            self.reap_when_stopping()
        self.kill_workers(signal.SIGKILL)
        limit = time.monotonic() + KILLED_WAIT
        while self.WORKERS and time.monotonic() < limit:
            self.hurried(0.1)
            self.reap_when_stopping()
        self.pool.begin_stop(not self.quick)
        while not self.pool.wait_stopped(0.05):
            if self.hurried(0.0):
                self.pool.begin_stop(False)
            self.reap_when_stopping()
        self.reap_when_stopping()

    def hurried(self, timeout: float) -> bool:
        """Wait for a signal, SIGCHLD being one: whether the stop has just become a quick one."""
        before = self.quick
        try:
            number = self.SIG_QUEUE.get(timeout=timeout) if timeout else self.SIG_QUEUE.get_nowait()
            while True:
                if number in (signal.SIGINT, signal.SIGQUIT) and not self.quick:
                    self.log.info("Quick shutdown requested")
                    self.quick = True
                number = self.SIG_QUEUE.get_nowait()
        except queue.Empty:
            pass
        return self.quick and not before

    def reap_when_stopping(self) -> None:
        with contextlib.suppress(HaltServer):  # it stops already
            self.reap_workers()


class _Restored:
    """Puts environment, working directory and app.cfg back at the end of the block unless `keep` was
    called."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __enter__(self) -> _Restored:
        self.cfg, self.cwd, self.environ, self.path = self.app.cfg, os.getcwd(), dict(os.environ), sys.path[:]
        # The configuration is read in the environment that the server was started in.
        for key in self.cfg.env:
            if key in self.cfg.env_orig:
                os.environ[key] = self.cfg.env_orig[key]
            else:
                os.environ.pop(key, None)
        self.undo: Callable[[], None] | None = self._undo
        return self

    def keep(self) -> None:
        self.undo = None

    def _undo(self) -> None:
        self.app.cfg = self.cfg
        os.environ.clear()
        os.environ.update(self.environ)
        sys.path[:] = self.path
        os.chdir(self.cwd)

    def __exit__(self, *exc: object) -> None:
        if self.undo is not None:
            self.undo()


def _number_from_3(fds: list[int]) -> None:
    """Have these descriptors be 3, 4 and so on across an exec; what else has these numbers is closed."""
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, systemd.SD_LISTEN_FDS_START + len(fds)) for fd in fds]
    for fd in fds:
        os.set_inheritable(fd, False)
    for number, fd in enumerate(copies, systemd.SD_LISTEN_FDS_START):
        os.dup2(fd, number)


class _OneAddress:
    """A configuration with one address, for sock.create_sockets."""

    def __init__(self, cfg: Config, address: Any) -> None:
        self.cfg = cfg
        self.address = [address]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cfg, name)
