"""A server under checked load while everything around it goes wrong, from a seed.

    python tests/chaos/run.py --minutes 30 --seed 7
    python tests/chaos/run.py --seconds 20 --only kill_child,reload

One event after another strikes a running server (events.py), each followed by a wait until the pool is whole.
What must hold: no answer is ever wrong; a request fails only if the process that ran it was hit; the pool is
whole again within two restart delays; nothing leaks. The first time that something does not hold ends the run
with its seed and the last events; exit status 1.

A seed decides what happens in which order, not when the kernel runs whom.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration")]

from checked_load import CheckedLoad  # noqa: E402
from events import EVENTS, Chaos, Skip  # noqa: E402
from victim import HOSTS, Victim, free_port  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36

CHECK_LEAKS_EVERY = 10
"""Events."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="beside the minutes; 20 if neither is given"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--pools", type=int, choices=(1, 2), default=1, help="to divide the children among")
    parser.add_argument("--only", help="names of events, with commas between")
    parser.add_argument("--directory", type=Path, help="for the server's files, kept afterwards")
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes + arguments.seconds or 20.0
    names = arguments.only.split(",") if arguments.only else list(EVENTS)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans are ours to find, and to reap
    with tempfile.TemporaryDirectory(prefix="poolparty-chaos-") as scratch:
        directory = arguments.directory or Path(scratch)
        sys.exit(run(directory, seconds, arguments.seed, arguments.connections, names, arguments.pools))


def run(
    directory: Path, seconds: float, seed: int, connections: int, names: list[str], pools: int = 1
) -> int:
    print(f"seed {seed}, {seconds:g} s, {connections} connections, {pools} pools", flush=True)
    chance = random.Random(seed)
    port = free_port()
    chaos = Chaos(Victim(directory, port, pools), chance)
    last: deque[str] = deque(maxlen=30)
    counts: Counter[str] = Counter()
    skipped: dict[str, str] = {}
    began = time.monotonic()
    try:
        chaos.victim.wait_listening()
        chaos.victim.wait_whole(20)
        with CheckedLoad(("127.0.0.1", port), connections, HOSTS[:pools]) as load:
            chaos.load = load
            load.wait_answers(200)
            chaos.victim.check_leaks()
            # Each of them at least once, then at random.
            coming = chance.sample(names, len(names))
            while time.monotonic() - began < seconds:
                name = coming.pop() if coming else chance.choice(names)
                if name in skipped:
                    if len(skipped) == len(names):
                        raise AssertionError(f"nothing can be done here: {skipped}")
                    continue
                at = time.monotonic() - began
                try:
                    what = EVENTS[name](chaos)
                except Skip as reason:
                    skipped[name] = str(reason)
                    continue
                finally:
                    last.append(f"{at:8.2f} s  {name}")
                last[-1] += f": {what}"
                recovered = chaos.settle()
                last[-1] += f"; whole after {recovered:.2f} s"
                counts[name] += 1
                if sum(counts.values()) % CHECK_LEAKS_EVERY == 0:
                    chaos.victim.check_leaks()
                    confessions = chaos.victim.confessions()
                    assert not confessions, f"the server's log confesses: {confessions[:5]}"
                pause = time.monotonic() + chance.uniform(0, 0.3)
                while time.monotonic() < pause:
                    load.wait_answers(1)
            chaos.settle()
            chaos.victim.check_leaks()
        chaos.settle(load_runs=False)
        chaos.victim.stop()
        confessions = chaos.victim.confessions()
        assert not confessions, f"the server's log confesses: {confessions[:5]}"
    except BaseException as error:
        print(f"FAILED with seed {seed} after {time.monotonic() - began:.1f} s: {error}")
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        print("the last events:", *last, sep="\n  ")
        print("the last failures:", *list(chaos.failures)[-10:], sep="\n  ")
        print("its processes:", *processes(chaos.victim), sep="\n  ")
        print("the log's end:", *chaos.victim.log.splitlines()[-40:], sep="\n  ")
        chaos.victim.kill_session()
        if chaos.load is not None:
            chaos.load.stopping = True
        return 1
    print(chaos.summary(counts, skipped, time.monotonic() - began))
    return 0


def processes(victim: Victim) -> list[str]:
    """What each process of the server does at this moment."""
    lines = []
    for pid in victim.session():
        said = {}
        for name in ("cmdline", "stat", "wchan", "syscall", "stack"):
            try:
                said[name] = Path(f"/proc/{pid}/{name}").read_text().replace("\0", " ").strip()
            except OSError as error:
                said[name] = str(error.strerror)
        state = said["stat"].rpartition(")")[2].split()[:1]
        lines.append(f"{pid} {state} {said['cmdline'][:80]!r} {said['wchan']} {said['syscall']}")
        lines += [f"    {frame}" for frame in said["stack"].splitlines()[:6]]
    return lines


if __name__ == "__main__":
    os.nice(5)  # it shares the machine
    main()
