"""Several pools in one pool thread: children are real processes, the test plays the HTTP workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from poolparty.errors import ControlError
from poolparty.pool.child import State
from poolparty.pools import pool_configs
from poolparty.stats.scoreboard import SeatWord

Make = Callable[..., Any]
WaitFor = Callable[..., Any]


def two_pools(bench: Make, other: str = "serve(lambda p: b'other')", **options: Any) -> Any:
    """A bench with the pools `default` and `other`."""
    own = {
        name.removeprefix("other_"): options.pop(name) for name in list(options) if name.startswith("other_")
    }
    return bench(
        "serve(lambda p: b'default')",
        pools={"other": {"routes": ["/other"], "program": other, **own}},
        **options,
    )


def serving(bench: Any) -> Any:
    """An HTTP worker that has booted."""
    worker = bench.worker()
    board = worker.seat.scoreboard
    board.words[board.seat_base(worker.seat.id) + SeatWord.PID] = os.getpid()
    return worker


def states(bench: Any, name: str) -> list[State]:
    with bench.pool.lock:
        return [child.state for child in bench.pool.pool_named(name).children.values()]


def target(bench: Any, name: str) -> int:
    with bench.pool.lock:
        found: int = bench.pool.pool_named(name).policy.target
        return found


def test_a_child_is_lent_for_the_pool_whose_requests_wait(bench: Make, wait_for: WaitFor) -> None:
    one = two_pools(bench)
    worker = one.worker()
    for number, name in ((1, b"other"), (0, b"default"), (1, b"other")):
        loan = worker.borrow(number)
        assert loan.pool == number
        loan.send()
        assert loan.answer() == name
        loan.give_back()
        wait_for(lambda name=name: states(one, name.decode()) == [State.IDLE])


def test_rows_of_the_same_number_are_different_childrens(bench: Make) -> None:
    one = two_pools(bench)
    worker = one.worker()
    loans = [worker.borrow(0), worker.borrow(1)]
    assert loans[0].slot == loans[1].slot and loans[0].pid != loans[1].pid
    for loan in loans:
        loan.send()
    assert [loan.answer() for loan in loans] == [b"default", b"other"]
    shown = one.pool.stats()["pools"]
    assert [pool["children"][0]["requests"] for pool in shown] == [1, 1]


def test_a_crash_loop_in_one_pool_leaves_the_other_alone(bench: Make, wait_for: WaitFor) -> None:
    one = two_pools(bench, "sys.exit(1)", worker_restart_delay="10ms")
    wait_for(lambda: one.pool.pool_named("other").policy.failures > 2, "a crash loop")
    assert "pool=other" in one.wait_log("worker died before it was ready")
    assert one.pool.pool_named("default").policy.failures == 0
    worker = serving(one)
    loan = worker.borrow()
    loan.send()
    assert loan.answer() == b"default"
    assert one.pool.ready, "one broken pool does not keep the server from being ready"
    with one.pool.lock:
        assert one.pool.why_not_ready() is None
        assert "no worker is ready" in one.pool.why_not_ready("other")
        assert one.pool.capacity()[0] is None


def test_the_server_is_not_ready_while_a_pool_boots(bench: Make, wait_for: WaitFor, tmp_path: Any) -> None:
    os.mkfifo(tmp_path / "gate")
    one = two_pools(bench, f"gate({str(tmp_path / 'gate')!r}); serve()")
    serving(one)
    wait_for(lambda: states(one, "default") == [State.IDLE])
    with one.pool.lock:
        assert not one.pool.ready
        assert one.pool.why_not_ready() == "pool other: no worker is ready yet"
    (tmp_path / "gate").write_text("go")
    wait_for(lambda: one.pool.ready)
    assert one.pool.why_not_ready() is None


def test_a_child_that_is_replaced_later_leaves_the_server_ready(
    bench: Make, wait_for: WaitFor, tmp_path: Any
) -> None:
    gate = tmp_path / "gate"
    one = two_pools(bench, f"os.path.exists({str(gate)!r}) and gate({str(gate)!r}); serve()")
    worker = serving(one)
    wait_for(lambda: one.pool.ready)
    os.mkfifo(gate)
    loan = worker.borrow(1)
    loan.send()
    assert loan.answer() == b"hi"
    os.kill(loan.pid, signal.SIGKILL)
    wait_for(lambda: State.BOOTING in states(one, "other"), "its successor boots")
    with one.pool.lock:
        assert one.pool.why_not_ready() is None
        assert one.pool.why_not_ready("other") == "no worker is ready yet"
    gate.write_text("go")
    loan.give_back()
    wait_for(lambda: State.IDLE in states(one, "other"))


def test_a_restart_by_name_replaces_that_pools_children_alone(bench: Make, wait_for: WaitFor) -> None:
    one = two_pools(bench, min_pool_size=2, max_pool_size=2)
    wait_for(lambda: states(one, "default") == states(one, "other") == [State.IDLE] * 2)
    before = {pool.name: {child.pid for child in pool.children.values()} for pool in one.pool.pools}
    outcome = one.restart("other")
    wait_for(lambda: outcome)
    assert outcome == [None]
    after = {pool.name: {child.pid for child in pool.children.values()} for pool in one.pool.pools}
    assert after["default"] == before["default"]
    assert not after["other"] & before["other"]


def test_a_restart_of_all_pools_is_done_when_the_last_is_and_says_whose_failed(
    bench: Make, wait_for: WaitFor, tmp_path: Any
) -> None:
    good = tmp_path / "good"
    good.touch()
    one = two_pools(bench, f"os.path.exists({str(good)!r}) or sys.exit(4); serve()")
    wait_for(lambda: states(one, "default") == states(one, "other") == [State.IDLE])
    outcome = one.restart()
    wait_for(lambda: outcome)
    assert outcome == [None]
    good.unlink()
    outcome = one.restart()
    wait_for(lambda: outcome)
    assert outcome[0].startswith("pool other: the new worker did not boot: ")
    assert "default" not in outcome[0]
    wait_for(lambda: states(one, "other") == [State.IDLE])


def test_which_pool_is_meant_has_to_be_said(bench: Make) -> None:
    one = two_pools(bench, max_pool_size=3)
    with one.pool.lock:
        for command in (one.pool.spawn_workers, one.pool.remove_workers):
            with pytest.raises(ControlError, match="several pools, so name one: default, other"):
                command(1)
            with pytest.raises(ControlError, match="there is no pool api; there are: default, other"):
                command(1, "api")
        with pytest.raises(ControlError, match="there is no pool api"):
            one.pool.restart_workers(lambda error: None, "a test", "api")
        one.pool.spawn_workers(1, "other")
    assert (target(one, "default"), target(one, "other")) == (1, 2)


def test_a_child_is_found_by_its_pid_in_whichever_pool(bench: Make, wait_for: WaitFor) -> None:
    one = two_pools(bench)
    wait_for(lambda: states(one, "other") == [State.IDLE])
    with one.pool.lock:
        (child,) = one.pool.pool_named("other").children.values()
        assert "pool=other" in one.pool.dump_worker(child.pid)
        one.pool.kill_worker(child.pid)
    wait_for(lambda: one.pool.pool_named("other").counters["ended_killed"] == 1)
    assert one.pool.pool_named("default").counters["ended_killed"] == 0


def test_the_pools_together_have_no_more_children_than_the_total(bench: Make, wait_for: WaitFor) -> None:
    one = two_pools(bench, max_pool_size=5, total_pool_size=4)
    worker = one.worker()
    worker.want(9, pool=0)
    wait_for(lambda: target(one, "default") == 3, "the default pool has what the other's minimum leaves")
    worker.stop_wanting(0)
    worker.want(9, pool=1)
    one.pool.wake()
    with one.pool.lock:
        assert one.pool.pool_named("other").policy.max_size == 1
        one.pool.remove_workers(2, "default")
    wait_for(lambda: (target(one, "default"), target(one, "other")) == (1, 3))


def test_above_the_total_memory_no_pool_grows_and_idle_children_leave(bench: Make, wait_for: WaitFor) -> None:
    big = "ballast = bytearray(os.urandom(1)) * (64 << 20); serve()"
    one = two_pools(bench, big, max_pool_size=4, other_max_pool_size=4, total_memory_limit="250M")
    with one.pool.lock:
        one.pool.spawn_workers(3, "other")
    wait_for(lambda: target(one, "other") < 4, "a child leaves for want of memory", deadline=20.0)
    with one.pool.lock:
        assert one.pool._memory_used > 250 << 20 or target(one, "other") < 4
    wait_for(lambda: 0 < one.pool._memory_used < 250 << 20, "it fits", deadline=20.0)
    assert target(one, "default") == 1 and target(one, "other") >= 1


def test_a_pool_that_gave_up_its_last_child_for_want_of_memory_starts_another(
    bench: Make, wait_for: WaitFor
) -> None:
    one = bench(min_pool_size=0, total_memory_limit="1M")
    worker = one.worker()
    for count in (1, 2):
        loan = worker.borrow()
        loan.send()
        assert loan.answer() == b"hi"
        loan.give_back()
        wait_for(lambda: not one.children(), "it leaves", deadline=20.0)
        assert one.pool.pools[0].counters["spawns"] == count


def test_a_reload_follows_each_pools_options_and_not_another_set_of_pools(
    bench: Make, wait_for: WaitFor
) -> None:
    one = two_pools(bench, max_pool_size=3)
    wait_for(lambda: states(one, "default") == states(one, "other") == [State.IDLE])
    command = one.cfg.settings["pools"].get()["other"]["pool_cmd"]
    table = {"routes": ["/new"], "pool_cmd": command, "min_pool_size": 2}
    cfg = one.config("serve(lambda p: b'new')", max_pool_size=3, pools={"other": table})
    configs = pool_configs(cfg)
    assert one.pool.why_no_reload(configs) is None
    outcome: list[str | None] = []
    one.pool.reload(configs, cfg, outcome.append)
    wait_for(lambda: outcome)
    assert outcome == [None]
    wait_for(lambda: states(one, "other") == [State.IDLE] * 2)
    assert str(one.worker().seat.pools[1].config.routes[0]) == "/new"
    third = one.config("serve()", max_pool_size=2, pools={"other": table, "third": {"routes": ["/third"]}})
    refusal = one.pool.why_no_reload(pool_configs(third))
    assert refusal is not None and "they are default, other since the start" in refusal


def test_a_reload_may_name_the_pools_in_another_order(bench: Make, wait_for: WaitFor) -> None:
    tables = {
        name: {"routes": [f"/{name}"], "program": f"serve(lambda p: b'{name}')"} for name in ("one", "two")
    }
    server = bench(pools=tables, max_pool_size=3)
    wait_for(lambda: server.pool.ready)
    commands = {name: table["pool_cmd"] for name, table in server.cfg.settings["pools"].get().items()}
    reordered = {
        name: {"routes": [f"/{name}"], "pool_cmd": commands[name], "min_pool_size": count}
        for name, count in (("two", 2), ("one", 3))
    }
    cfg = server.config("serve()", max_pool_size=3, pools=reordered)
    configs = pool_configs(cfg)
    assert server.pool.why_no_reload(configs) is None
    outcome: list[str | None] = []
    server.pool.reload(configs, cfg, outcome.append)
    wait_for(lambda: outcome)
    assert outcome == [None]
    assert [len(states(server, name)) for name in ("default", "one", "two")] == [1, 3, 2]
    worker = server.worker()
    assert [share.config.name for share in worker.seat.pools] == ["default", "one", "two"]
    loan = worker.borrow(1)
    loan.send()
    assert loan.answer() == b"one"
    loan.give_back()


def test_an_http_workers_end_gives_back_the_children_of_every_pool(bench: Make, wait_for: WaitFor) -> None:
    one = two_pools(bench)
    worker = one.worker()
    idle, busy = worker.borrow(0), worker.borrow(1)
    busy.send()
    worker.channel.close()
    one.pool.seat_reaped(worker.seat)
    wait_for(lambda: one.pool.pool_named("other").counters["ended_lessee_died"] == 1)
    wait_for(lambda: states(one, "default") == states(one, "other") == [State.IDLE])
    with one.pool.lock:
        (child,) = one.pool.pool_named("default").children.values()
    assert child.pid == idle.pid
    for loan in (idle, busy):
        loan.close()


def test_a_dead_child_of_the_second_pool_has_its_own_row_back(bench: Make, wait_for: WaitFor) -> None:
    one = two_pools(bench)
    worker = one.worker()
    loan = worker.borrow(1)
    os.kill(loan.pid, signal.SIGKILL)
    wait_for(lambda: one.pool.pool_named("other").counters["deaths"] == 1)
    wait_for(lambda: states(one, "other") == [State.IDLE])
    again = worker.borrow(1)
    assert again.slot != loan.slot, "its seat has not given the old one up yet"
    loan.give_back()
    free = one.pool.pool_named("other").supervisor._free_rows
    wait_for(lambda: loan.slot in free)
    again.give_back()


def test_the_process_title_tells_of_each_pool(bench: Make, wait_for: WaitFor) -> None:
    one = two_pools(bench)
    wait_for(lambda: states(one, "default") == states(one, "other") == [State.IDLE])
    loan = one.worker().borrow(1)
    loan.send()
    assert one.pool.describe() == "pools default 0/1 busy; other 1/1 busy"
    assert loan.answer() == b"other"
    loan.give_back()
