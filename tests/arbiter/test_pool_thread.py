"""The pool thread with real children; the test is the HTTP worker."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolparty.arbiter import children
from poolparty.errors import ConfigError
from poolparty.pool.child import State
from poolparty.pools import pool_configs
from poolparty.stats.scoreboard import PoolWord, SeatWord
from poolparty.wire import seat as wire

Make = Callable[..., Any]
WaitFor = Callable[..., Any]

SAYS_READY = 'ready("health-reply"); receive(); well(); serve()'


class TestBecomingReady:
    def test_the_minimum_is_started_at_once(self, bench: Make) -> None:
        pool = bench(SAYS_READY, min_pool_size=3, max_pool_size=4)
        pool.wait_children(3, State.IDLE)
        assert pool.pool.pools[0].counters["spawns"] == 3

    def test_a_child_of_version_1_is_ready_once_it_has_read_its_health_check(
        self, bench: Make, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        os.mkfifo(tmp_path / "gate")
        pool = bench(f"print('here', flush=True); gate({str(tmp_path / 'gate')!r}); serve()")
        pool.wait_log("here")
        assert not pool.children(State.IDLE)
        (tmp_path / "gate").write_text("go")
        pool.wait_children(1, State.IDLE)

    def test_a_child_that_answers_health_checks_is_ready_once_it_has_answered(
        self, bench: Make, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "gate")
        gate = str(tmp_path / "gate")
        pool = bench(
            f'ready("health-reply"); receive(); print("read", flush=True); gate({gate!r}); well(); serve()'
        )
        pool.wait_log("read")
        assert not pool.children(State.IDLE)
        (tmp_path / "gate").write_text("go")
        pool.wait_children(1, State.IDLE)

    def test_ready_without_health_reply_counts_once_the_check_is_read(self, bench: Make) -> None:
        pool = bench('ready("something-new"); serve()')
        pool.wait_children(1, State.IDLE)

    def test_a_child_that_is_not_ready_in_time_is_ended(self, bench: Make) -> None:
        pool = bench("print('up', flush=True); signal.pause()", worker_boot_timeout="300ms")
        line = pool.wait_log('cause="boot timeout"')
        assert "last-output=up" in line

    def test_a_child_that_says_it_is_unwell_is_ended_with_its_message(self, bench: Make) -> None:
        pool = bench('ready("health-reply"); receive(); well(False, "no database"); serve()')
        line = pool.wait_log("cause=unhealthy")
        assert 'complaint="no database"' in line

    def test_a_child_that_writes_garbage_is_ended(self, bench: Make) -> None:
        pool = bench('os.write(3, b"\\xff" * 100); serve()')
        assert "over the limit" in pool.wait_log("cause=broken")

    def test_an_answer_nobody_asked_for_is_broken(self, bench: Make) -> None:
        pool = bench("answer(); serve()")
        assert "HTTPResponse that nobody had asked for" in pool.wait_log("cause=broken")


class TestDyingChildren:
    def test_deaths_before_a_first_answer_are_retried_ever_later(self, bench: Make) -> None:
        pool = bench("sys.exit('no such module')", worker_restart_delay="20ms")
        pool.wait_log("worker died before it was ready", count=4)
        lines = pool.log.texts("worker died before it was ready")
        delays = [float(line.split("replaced-in=")[1].split("s")[0]) for line in lines[:4]]
        assert delays[0] == 0.02
        assert all(later >= 2 * earlier for earlier, later in itertools.pairwise(delays)), delays
        assert "exit-code=1" in lines[0] and 'last-output="no such module"' in lines[0]

    def test_a_child_that_has_answered_is_replaced_at_once(self, bench: Make) -> None:
        pool = bench(worker_restart_delay="30s")
        loan = pool.worker().borrow()
        loan.send()
        assert loan.answer() == b"hi"
        os.kill(loan.pid, signal.SIGKILL)
        loan.worker.seat.worker_end.settimeout(5)
        loan.give_back(wire.Reason.BROKEN)
        assert pool.wait_children(1, State.IDLE)[0].pid != loan.pid
        line = pool.wait_log("worker died")
        assert (
            f"worker-pid={loan.pid} signal=SIGKILL" in line
            and "requests=1" in line
            and "replaced-in=0s" in line
        )
        assert pool.pool.pools[0].counters["restarts"] == 1

    def test_an_idle_child_that_dies_is_noticed_and_replaced(self, bench: Make) -> None:
        pool = bench(worker_restart_delay="10ms")
        (child,) = pool.wait_children(1, State.IDLE)
        os.kill(child.pid, signal.SIGKILL)
        pool.wait_log("worker died")
        assert pool.wait_children(1, State.IDLE)[0].id != child.id

    @pytest.mark.parametrize(
        "fault", ["os.close(3)", 'os.write(3, b"x")'], ids=["closes fd 3", "writes to it"]
    )
    def test_an_idle_child_that_misuses_fd_3_is_ended(self, bench: Make, tmp_path: Path, fault: str) -> None:
        os.mkfifo(tmp_path / "gate")
        pool = bench(
            f"receive(); gate({str(tmp_path / 'gate')!r}); {fault}; signal.pause()",
            worker_restart_delay="30s",
        )
        pool.wait_children(1, State.IDLE)
        (tmp_path / "gate").write_text("go")
        assert "fd 3" in pool.wait_log("cause=broken")

    def test_grandchildren_die_with_their_child(
        self, bench: Make, wait_for: WaitFor, lives: Callable[[int], bool]
    ) -> None:
        program = (
            "pid = os.fork()\nif not pid:\n    signal.pause()\nprint('grandchild', pid, flush=True)\nserve()"
        )
        pool = bench(program)
        (child,) = pool.wait_children(1, State.IDLE)
        grandchild = int(pool.wait_log("grandchild").split()[-1])
        assert lives(grandchild)
        os.kill(child.pid, signal.SIGKILL)
        wait_for(lambda: not lives(grandchild))

    def test_an_orphan_that_left_the_group_and_holds_the_pipes_delays_nothing(
        self, bench: Make, wait_for: WaitFor, tmp_path: Path
    ) -> None:
        program = (
            "pid = os.fork()\n"
            "if not pid:\n"
            f"    os.setsid(); open({str(tmp_path / 'orphans')!r}, 'a').write(f'{{os.getpid()}} ')\n"
            "    signal.alarm(20); signal.pause()\n"
            "serve()"
        )
        pool = bench(program, worker_restart_delay="10ms")
        (child,) = pool.wait_children(1, State.IDLE)
        wait_for((tmp_path / "orphans").exists)
        try:
            os.kill(child.pid, signal.SIGKILL)
            pool.wait_log("worker died")
            pool.wait_children(1, State.IDLE)
            pool.pool.stop()
        finally:
            for pid in (tmp_path / "orphans").read_text().split():
                os.kill(int(pid), signal.SIGKILL)

    def test_a_start_that_fails_is_tried_again(self, bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        real = children.start
        tries: list[float] = []

        def start(*arguments: Any) -> Any:
            tries.append(time.monotonic())
            if len(tries) < 3:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return real(*arguments)

        monkeypatch.setattr(children, "start", start)
        pool = bench(worker_restart_delay="20ms")
        pool.wait_children(1, State.IDLE)
        assert len(pool.log.texts("could not be started")) == 2
        assert tries[1] - tries[0] >= 0.02 and tries[2] - tries[1] >= 0.04

    @pytest.mark.parametrize(("number", "down"), [(errno.EAGAIN, 0), (errno.EMFILE, 0), (errno.EACCES, 1)])
    def test_requests_wait_while_the_machine_has_no_room_for_a_child(
        self, bench: Make, monkeypatch: pytest.MonkeyPatch, number: int, down: int
    ) -> None:
        """Half a second in which fork failed was taken for an application that does not start."""

        def start(*arguments: Any) -> Any:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(children, "start", start)
        pool = bench(worker_restart_delay="20ms")
        pool.wait_log("could not be started", count=3)
        board = pool.pool.pools[0].scoreboard
        with pool.pool.lock:
            assert board.words[board.pool_base + PoolWord.DOWN] == down

    def test_starts_that_fail_together_are_one_failure(
        self, bench: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each was a step of the back-off: four children that could not be forked made it eight seconds."""
        real = children.start
        tries: list[float] = []

        def start(*arguments: Any) -> Any:
            tries.append(time.monotonic())
            if tries[-1] - tries[0] < 0.02:  # all of one turn, and none after the delay
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return real(*arguments)

        monkeypatch.setattr(children, "start", start)
        pool = bench(min_pool_size=4, max_pool_size=4, worker_restart_delay="20ms")
        pool.wait_children(4, State.IDLE)
        assert pool.log.texts("could not be started")[0].endswith("next-try-in=0.02s")
        assert len(pool.log.texts("could not be started")) == 1
        assert len(tries) == 5


class TestLending:
    def test_a_request_goes_through_a_child_and_the_child_comes_back(self, bench: Make) -> None:
        pool = bench("serve(lambda payload: payload[6:14])")
        loan = pool.worker().borrow()
        loan.send(b"http://one/")
        assert loan.answer() == b"http://o"
        loan.give_back()
        (child,) = pool.wait_children(1, State.IDLE)
        assert child.pid == loan.pid and child.seat is None

    def test_the_pool_grows_when_requests_wait_and_not_before(self, bench: Make) -> None:
        pool = bench(max_pool_size=2, worker_spawn_timeout="100ms")
        worker = pool.worker()
        worker.borrow().send()
        asked = time.monotonic()
        worker.want()
        worker.take()
        assert time.monotonic() - asked >= 0.1
        assert len(pool.children(State.LENT)) == 2

    def test_no_more_than_the_maximum_is_started(self, bench: Make) -> None:
        pool = bench(max_pool_size=2, worker_spawn_timeout="5ms")
        worker = pool.worker()
        for _ in range(2):
            worker.want(50)
            worker.take().send()
        worker.want(50)
        worker.channel.settimeout(0.3)
        with pytest.raises(TimeoutError):
            worker.take()
        assert pool.pool.pools[0].counters["spawns"] == 2

    def test_an_idle_child_is_recalled_for_a_seat_that_needs_it(self, bench: Make) -> None:
        pool = bench()
        rich, poor = pool.worker(), pool.worker()
        loan = rich.borrow()
        poor.want()
        assert rich.receive() == wire.Recall(loan.lease)
        loan.give_back()
        second = poor.take()
        assert second.pid == loan.pid and second.lease > loan.lease
        second.send()
        assert second.answer() == b"hi"

    def test_a_child_that_timed_out_is_ended_by_sigterm_then_killed(
        self, bench: Make, lives: Callable[[int], bool], wait_for: WaitFor
    ) -> None:
        program = "signal.signal(signal.SIGTERM, signal.SIG_IGN); serve(lambda p: signal.pause())"
        pool = bench(program, worker_request_grace="200ms", worker_restart_delay="10ms")
        loan = pool.worker().borrow()
        loan.send()
        began = time.monotonic()
        loan.give_back(wire.Reason.TIMED_OUT)
        wait_for(lambda: not lives(loan.pid))
        assert time.monotonic() - began >= 0.2
        line = pool.wait_log('cause="request timeout"')
        assert "signal=SIGKILL" in line

    def test_a_stopped_child_is_ended_too(
        self, bench: Make, lives: Callable[[int], bool], wait_for: WaitFor
    ) -> None:
        pool = bench("serve(lambda p: os.kill(os.getpid(), signal.SIGSTOP))", worker_restart_delay="10ms")
        loan = pool.worker().borrow()
        loan.send()
        wait_for(lambda: Path(f"/proc/{loan.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        loan.give_back(wire.Reason.TIMED_OUT)
        assert "signal=SIGTERM" in pool.wait_log('cause="request timeout"')

    def test_a_child_given_back_in_the_middle_of_a_request_is_not_lent_again(self, bench: Make) -> None:
        pool = bench("serve(lambda p: signal.pause())", worker_restart_delay="10ms")
        loan = pool.worker().borrow()
        loan.send()
        loan.give_back(wire.Reason.IDLE)
        pool.wait_log("request unanswered")

    def test_a_stale_lease_is_ignored(self, bench: Make) -> None:
        pool = bench()
        worker = pool.worker()
        first = worker.borrow()
        first.give_back()
        second = worker.borrow()
        worker.send(wire.Return(first.lease, wire.Reason.BROKEN))
        second.send()
        assert second.answer() == b"hi"
        second.give_back()
        assert pool.wait_children(1, State.IDLE)[0].pid == first.pid

    def test_a_refused_child_is_offered_again(self, bench: Make) -> None:
        pool = bench()
        worker = pool.worker()
        worker.want()
        loan = worker.take()
        worker.want()
        loan.give_back(wire.Reason.REFUSED)
        assert worker.take().pid == loan.pid

    def test_a_dead_childs_row_waits_for_its_seat(self, bench: Make) -> None:
        pool = bench(worker_restart_delay="1ms")
        worker = pool.worker()
        loan = worker.borrow()
        os.kill(loan.pid, signal.SIGKILL)
        (other,) = pool.wait_children(1, State.IDLE)
        assert other.slot != loan.slot
        os.kill(other.pid, signal.SIGKILL)
        pool.wait_log("worker died", count=2)
        (third,) = pool.wait_children(1, State.IDLE)
        assert third.slot == other.slot
        loan.give_back(wire.Reason.BROKEN)
        os.kill(third.pid, signal.SIGKILL)
        pool.wait_log("worker died", count=3)
        (fourth,) = pool.wait_children(1, State.IDLE)
        os.kill(fourth.pid, signal.SIGKILL)
        pool.wait_log("worker died", count=4)
        assert {fourth.slot, pool.wait_children(1, State.IDLE)[0].slot} <= {loan.slot, other.slot}

    def test_a_channel_that_is_full_loses_no_child(self, bench: Make) -> None:
        pool = bench(min_pool_size=2, max_pool_size=2)
        pool.wait_children(2, State.IDLE)
        worker = pool.worker()
        while True:
            try:
                worker.seat.arbiter_end.send(wire.encode(wire.Recall(10**9)))
            except BlockingIOError:
                break
        worker.want()
        second = pool.worker()
        assert second.borrow().pid  # the pool goes on
        while worker.channel.recv(wire.MAX_PACKET, socket.MSG_PEEK) == wire.encode(wire.Recall(10**9)):
            worker.receive()
        assert worker.take().pid

    def test_a_seat_that_talks_nonsense_is_closed(self, bench: Make, wait_for: WaitFor) -> None:
        pool = bench()
        worker = pool.worker()
        worker.borrow()
        worker.channel.send(b"nonsense")
        assert worker.channel.recv(64) == b""
        wait_for(lambda: not pool.pool.seats)
        pool.wait_children(1, State.IDLE)


class TestSeatDeath:
    def test_an_idle_child_of_a_dead_http_worker_is_lent_again(self, bench: Make) -> None:
        pool = bench()
        worker = pool.worker()
        loan = worker.borrow()
        loan.send()
        assert loan.answer() == b"hi"
        loan.close()
        worker.channel.close()
        (child,) = pool.wait_children(1, State.IDLE)
        assert child.pid == loan.pid
        again = pool.worker().borrow()
        again.send()
        assert again.answer() == b"hi"

    def test_a_busy_child_of_a_dead_http_worker_is_ended_and_replaced_at_once(self, bench: Make) -> None:
        pool = bench("serve(lambda p: signal.pause())", worker_restart_delay="30s")
        worker = pool.worker()
        loan = worker.borrow()
        loan.send()
        worker.channel.close()
        pool.wait_log('cause="its HTTP worker died during a request"')
        assert pool.wait_children(1, State.IDLE)[0].pid != loan.pid

    def test_a_lend_that_was_never_read_comes_back(self, bench: Make) -> None:
        pool = bench()
        worker = pool.worker()
        worker.want()
        pool.wait_children(1, State.LENT)
        worker.channel.close()
        pool.wait_children(1, State.IDLE)

    def test_a_return_sent_just_before_death_counts(self, bench: Make) -> None:
        pool = bench("serve(lambda p: signal.pause())", worker_restart_delay="10ms")
        worker = pool.worker()
        loan = worker.borrow()
        loan.send()
        with pool.pool.lock:
            loan.give_back(wire.Reason.TIMED_OUT)
            worker.channel.close()
        pool.wait_log('cause="request timeout"')

    def test_its_counters_stay_in_the_totals_and_its_row_is_used_again(
        self, bench: Make, wait_for: WaitFor
    ) -> None:
        pool = bench()
        worker = pool.worker()
        row = worker.seat.id
        board = pool.pool.pools[0].scoreboard
        board.words[board.seat_base(row) + len(SeatWord)] = 7
        worker.channel.close()
        wait_for(lambda: not pool.pool.seats)
        assert board.totals()["requests"] == 7
        assert pool.worker().seat.id == row


class TestHealthChecks:
    def test_an_idle_child_is_checked_and_lives_on(self, bench: Make, wait_for: WaitFor) -> None:
        program = 'ready("health-reply")\nwhile True:\n    receive(); print("checked", flush=True); well()'
        pool = bench(program, worker_health_check_interval="20ms")
        pool.wait_log("checked", count=4)
        assert pool.pool.pools[0].counters["spawns"] == 1

    def test_a_child_that_does_not_answer_is_ended(self, bench: Make) -> None:
        program = 'ready("health-reply"); receive(); well(); receive(); signal.pause()'
        pool = bench(
            program,
            worker_health_check_interval="20ms",
            worker_health_check_timeout="100ms",
            worker_restart_delay="30s",
        )
        assert "worker_health_check_timeout" in pool.wait_log("cause=unhealthy")

    def test_a_child_of_version_1_has_to_read_it(self, bench: Make) -> None:
        pool = bench(
            "receive(); signal.pause()",
            worker_health_check_interval="20ms",
            worker_health_check_timeout="100ms",
            worker_restart_delay="30s",
        )
        assert "worker_health_check_timeout" in pool.wait_log("cause=unhealthy")

    def test_one_that_is_lent_and_idle_is_recalled_for_it(self, bench: Make) -> None:
        pool = bench(worker_health_check_interval="100ms")
        worker = pool.worker()
        loan = worker.borrow()
        assert worker.receive() == wire.Recall(loan.lease)


class TestRestart:
    def test_every_child_is_replaced_then_done_is_called(self, bench: Make, wait_for: WaitFor) -> None:
        pool = bench(SAYS_READY, min_pool_size=3, max_pool_size=3)
        old = {child.pid for child in pool.wait_children(3, State.IDLE)}
        outcome = pool.restart()
        wait_for(lambda: outcome)
        assert outcome == [None]
        new = {child.pid for child in pool.wait_children(3, State.IDLE)}
        assert not new & old
        assert pool.pool.pools[0].counters["restarts"] == 0

    def test_a_new_generation_that_does_not_boot_leaves_the_old_one(
        self, bench: Make, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        program = (
            f"if os.path.exists({str(tmp_path / 'broken')!r}):\n    sys.exit('syntax error in app')\nserve()"
        )
        pool = bench(program, min_pool_size=2, max_pool_size=2)
        old = {child.pid for child in pool.wait_children(2, State.IDLE)}
        (tmp_path / "broken").touch()
        outcome = pool.restart()
        wait_for(lambda: outcome)
        assert "did not boot" in outcome[0] and "syntax error in app" in outcome[0]
        assert pool.pool.stats()["pools"][0]["restart_error"] == outcome[0]
        assert {child.pid for child in pool.wait_children(2, State.IDLE)} == old
        (tmp_path / "broken").unlink()
        again = pool.restart()
        wait_for(lambda: again)
        assert again == [None]
        assert pool.pool.stats()["pools"][0]["restart_error"] is None
        assert not {child.pid for child in pool.wait_children(2, State.IDLE)} & old

    def test_a_busy_child_finishes_its_request_first(
        self, bench: Make, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        os.mkfifo(tmp_path / "gate")
        gate = str(tmp_path / "gate")
        pool = bench(f"serve(lambda p: gate({gate!r}) or b'late')")
        worker = pool.worker()
        loan = worker.borrow()
        loan.send()
        outcome = pool.restart()
        assert worker.receive() == wire.Recall(loan.lease)
        pool.wait_children(1, State.IDLE)
        assert not outcome
        (tmp_path / "gate").write_text("go")
        assert loan.answer() == b"late"
        loan.give_back()
        wait_for(lambda: outcome)
        assert outcome == [None]

    def test_a_reload_starts_the_new_command_and_a_broken_one_leaves_the_old(
        self, bench: Make, wait_for: WaitFor
    ) -> None:
        pool = bench("serve(lambda p: b'old')")
        pool.wait_children(1, State.IDLE)
        outcome: list[str | None] = []
        for program, expected in (("sys.exit(3)", b"old"), ("serve(lambda p: b'new')", b"new")):
            cfg = pool.config([*pool.cfg.settings["pool_cmd"].get()[:-1], _program(pool, program)])
            outcome.clear()
            pool.pool.reload(pool_configs(cfg), cfg, outcome.append)
            wait_for(lambda: outcome)
            assert (outcome[0] is None) == (expected == b"new"), outcome
            worker = pool.worker()
            loan = worker.borrow()
            loan.send()
            assert loan.answer() == expected
            loan.give_back()
            # What replaces a child that dies is of the command that is proven to work.
            (child,) = pool.wait_children(1, State.IDLE)
            os.kill(child.pid, signal.SIGKILL)
            wait_for(lambda: pool.children(State.IDLE) and pool.children(State.IDLE)[0].pid != child.pid)  # noqa: B023

    def test_with_no_child_there_is_nothing_to_do(self, bench: Make, wait_for: WaitFor) -> None:
        outcome = (pool := bench(min_pool_size=0)).restart()
        wait_for(lambda: outcome)
        assert outcome == [None] and not pool.children()


def _program(pool: Any, program: str) -> str:
    prelude: str = pool.cfg.settings["pool_cmd"].get()[-1]
    return prelude[: prelude.rindex("serve(lambda")] + program


class TestSizing:
    def test_spawn_and_remove_are_bounded(self, bench: Make) -> None:
        pool = bench(min_pool_size=1, max_pool_size=3)
        with pool.pool.lock:
            pool.pool.spawn_workers(10)
        pool.wait_children(3, State.IDLE)
        with pool.pool.lock:
            pool.pool.remove_workers(10)
        pool.wait_children(1)
        pool.wait_log("cause=removed", count=2)

    def test_children_no_request_reaches_are_retired(self, bench: Make) -> None:
        pool = bench(min_pool_size=1, max_pool_size=3, worker_attrition_delay="200ms")
        with pool.pool.lock:
            pool.pool.spawn_workers(2)
        pool.wait_children(3, State.IDLE)
        pool.wait_children(1)
        pool.wait_log("cause=unused", count=2)


class TestStop:
    def test_nothing_is_left(self, bench: Make, tmp_path: Path, lives: Callable[[int], bool]) -> None:
        threads = set(threading.enumerate())
        fds = set(os.listdir("/proc/self/fd"))
        pool = bench(min_pool_size=2, max_pool_size=2)
        pids = [child.pid for child in pool.wait_children(2, State.IDLE)]
        worker = pool.worker()
        worker.borrow().close()
        worker.channel.close()
        pool.pool.stop()
        assert not any(lives(pid) for pid in pids)
        assert all(not Path(f"/proc/{pid}").exists() for pid in pids), "a zombie is left"
        assert set(threading.enumerate()) == threads
        assert set(os.listdir("/proc/self/fd")) == fds
        assert list(tmp_path.iterdir()) == []

    def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(self, bench: Make) -> None:
        pool = bench("signal.signal(signal.SIGTERM, signal.SIG_IGN); serve()", worker_request_grace="300ms")
        pool.wait_children(1, State.IDLE)
        began = time.monotonic()
        pool.pool.stop()
        assert 0.3 <= time.monotonic() - began < 2
        assert "killed=" in pool.wait_log("cause=stop")

    def test_a_second_stop_is_quick(self, bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("poolparty.arbiter.pool_thread.QUICK_GRACE", 0.1)
        pool = bench("signal.signal(signal.SIGTERM, signal.SIG_IGN); serve()", worker_request_grace="60s")
        pool.wait_children(1, State.IDLE)
        pool.pool.begin_stop(True)
        assert not pool.pool.wait_stopped(0.3)
        pool.pool.begin_stop(False)
        assert pool.pool.wait_stopped(5)

    def test_children_that_boot_are_ended_too(self, bench: Make) -> None:
        pool = bench("print('up', flush=True); signal.pause()")
        pool.wait_log("up")
        pool.pool.stop()
        assert not pool.children()

    def test_a_bug_in_the_thread_is_told_and_leaves_no_child(
        self, bench: Make, wait_for: WaitFor, lives: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool = bench()
        (child,) = pool.wait_children(1, State.IDLE)
        monkeypatch.setattr(pool.pool.pools[0].policy, "decide", lambda *_: 1 / 0)
        pool.pool.wake()
        wait_for(lambda: pool.failed)
        pool.wait_log("ZeroDivisionError")
        pool.pool.stop(False)
        assert not lives(child.pid)
        assert isinstance(pool.pool.failure, ZeroDivisionError)
        pool.pool.failure = None

    def test_a_control_socket_in_use_is_a_sentence(self, bench: Make, tmp_path: Path) -> None:
        pool = bench()
        pool.wait_children(1, State.IDLE)
        with pytest.raises(ConfigError, match="another server answers"):
            bench()
        pool.pool.stop()


def test_the_loop_rests_when_nothing_happens(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = bench(min_pool_size=2, max_pool_size=2)
    pool.wait_children(2, State.IDLE)
    turns = []
    real = pool.pool._turn
    monkeypatch.setattr(pool.pool, "_turn", lambda: turns.append(1) or real())
    pool.pool.wake()
    threading.Event().wait(0.3)
    assert len(turns) <= 3
