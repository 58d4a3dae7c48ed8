"""The command: bin/bench. Chooses cases and contestants, runs the rounds, prints tables and keeps results."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, profile, report, servers
from benchmarks.cases import CASES, Case
from benchmarks.processes import ServerFailed
from benchmarks.servers import CHECKOUT, NotFound, Setup

DESCRIPTION = """\
Measure Poolparty beside every other server found on this machine. Without arguments: every case, 5 rounds of
4 s, which takes about an hour. Nothing else should run on the machine meanwhile. The original is found as
`poolparty-go` on PATH (its Janet library in `jlib` beside it, or where ORIGINAL_JANET_PATH says), the C relay
as `poolparty-limit`."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="bin/bench", description=DESCRIPTION)
    made.add_argument("--case", action="append", metavar="NAME", help="only this case; may be repeated")
    made.add_argument(
        "--peer", action="append", metavar="NAME",
        help="only this server, or server and child (poolparty, poolparty-janet, nginx …); may be repeated",
    )  # fmt: skip
    made.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each case [5]")
    made.add_argument("--seconds", type=float, default=4, metavar="S", help="seconds of load a round [4]")
    made.add_argument("--quick", action="store_true", help="one round of 1 s, and only the main cases")
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="keep all samples in this file; cases it has are replaced"
    )
    made.add_argument("--docs", action="store_true", help="write docs/performance.md and its chart")
    made.add_argument(
        "--render", action="store_true", help="measure nothing: print (and write) what --json FILE has"
    )
    made.add_argument(
        "--profile", action="store_true", help="show where a request's time goes, by --peer (poolparty-janet)"
    )
    made.add_argument("--list", action="store_true", help="list cases and servers, found or not, and exit")
    made.add_argument(
        "--install-peers", action="store_true", help="install the other servers: apt-get, and pip in .cache"
    )
    return made


def chosen_cases(names: Sequence[str] | None, quick: bool) -> list[Case]:
    known = {case.name: case for case in CASES}
    for name in names or ():
        if name not in known:
            raise SystemExit(f"bin/bench: no case is called '{name}'; there are: {', '.join(known)}")
    if names:
        return [case for case in CASES if case.name in names]
    return [case for case in CASES if case.quick or not quick]


def chosen_setups(case: Case, peers: Sequence[str] | None) -> list[Setup]:
    if not peers:
        return list(case.setups)
    return [setup for setup in case.setups if setup.peer in peers or setup.server in peers]


def run_case(case: Case, setups: Sequence[Setup], rounds: int, seconds: float) -> dict[str, Any]:
    """All rounds of one case: A B C, A B C, … Each contestant is started for its turn and ended behind it."""
    samples: dict[str, list[dict[str, float]]] = {setup.label: [] for setup in setups}
    skipped: dict[str, str] = {}
    complaints: dict[str, list[str]] = {}
    seconds = max(seconds, case.seconds)
    for turn in range(rounds):
        for setup in setups:
            if setup.label in skipped:
                continue
            try:
                sample, lines = run_once(case, setup, seconds)
            except NotFound as missing:
                skipped[setup.label] = str(missing)
                continue
            except (ServerFailed, ValueError, OSError) as failure:
                # Not left out: a server that fails under load has failed this round, and the table says so.
                tell(f"{case.name}: {setup.label}: FAILED: {failure}")
                complaints.setdefault(setup.label, []).append(f"failed in round {turn + 1}: {failure}")
                samples[setup.label].append(
                    {"failed_errors": 1, "errors": 1}
                )  # rounds stay beside each other
                continue
            samples[setup.label].append(sample)
            if lines:
                complaints.setdefault(setup.label, []).extend(lines)
            main = case.columns[0]
            told = f"{sample.get(main.key, 0):,.1f} {main.unit or main.title}"
            failed = f"{sample.get('errors', 0):.0f} errors"
            tell(f"{case.name} {turn + 1}/{rounds}: {setup.label}: {told}, {failed}")
    for label, reason in skipped.items():
        tell(f"{case.name}: {label}: not measured: {reason}")
    return {
        "samples": {label: taken for label, taken in samples.items() if label not in skipped},
        "skipped": skipped,
        "complaints": complaints,
    }


def run_once(case: Case, setup: Setup, seconds: float) -> tuple[dict[str, float], list[str]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        os.chmod(name, 0o755)
        folder = Path(name)
        with servers.make(setup, case.kind, folder) as server:
            sample = case.measure(server, setup, seconds)
            server.check()
        return sample, server.complaints()


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(case: Case, result: dict[str, Any]) -> None:
    print(f"\n{case.title}: {case.about}\n\n{report.case_table(case, result).text()}")
    for remark in report.remarks(result):
        print(f"  {remark}")
    sys.stdout.flush()


def list_all() -> None:
    print("cases:")
    for case in CASES:
        print(f"  {case.name:12} {case.title}")
    print("servers:")
    peers = {setup.peer: setup for case in CASES for setup in case.setups}
    for peer, setup in peers.items():
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            try:
                servers.make(setup, "hello", Path(folder))
                state = "found"
            except NotFound as missing:
                state = f"not found: {missing}"
        print(f"  {peer:24} {state}")


def main(arguments: Sequence[str] | None = None) -> int:
    # Whatever ends us, servers that run are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    if options.install_peers:
        servers.install_peers()
    if options.list:
        list_all()
        return 0
    if options.profile:
        return profile.run((options.peer or ["poolparty-janet"])[0], options.case, options.seconds)
    if options.render:
        if options.json is None:
            raise SystemExit("bin/bench: --render needs --json FILE")
        results = json.loads(options.json.read_text())
        cases = [case for case in chosen_cases(options.case, False) if case.name in results["cases"]]
    else:
        cases = chosen_cases(options.case, options.quick)
        results = measure(cases, options, given)
    if options.render:
        for case in cases:
            show(case, results["cases"][case.name])
    if options.docs:
        report.write(results, CHECKOUT / "docs")
        tell("written: docs/performance.md, docs/performance.svg")
    return 0


def measure(cases: Sequence[Case], options: argparse.Namespace, given: Sequence[str]) -> dict[str, Any]:
    try:
        servers.find("wrk")
    except NotFound:
        raise SystemExit("bin/bench: wrk is not on PATH; --install-peers installs it") from None
    rounds, seconds = (1, 1.0) if options.quick else (max(1, options.rounds), options.seconds)
    busy = machine.load()
    if busy > machine.BUSY:
        tell(f"bin/bench: the machine is not idle (load {busy:.1f}): figures will be low and uneven")
    results: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        results = json.loads(options.json.read_text())
    results |= {
        "command": shlex.join(["bin/bench", *without_json(given)]),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "seconds": seconds,
        "load": busy,
        "machine": machine.describe(),
        "versions": servers.versions(),
    }
    results.setdefault("cases", {})
    for case in cases:
        setups = chosen_setups(case, options.peer)
        if not setups:
            continue
        results["cases"][case.name] = run_case(case, setups, rounds, seconds)
        show(case, results["cases"][case.name])
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


def without_json(given: Sequence[str]) -> list[str]:
    """The command without the file's name, which is of no interest in the page and may be a private path."""
    kept: list[str] = []
    skip = False
    for word in given:
        if skip:
            skip = False
        elif word == "--json":
            skip = True
        elif not word.startswith("--json="):
            kept.append(word)
    return kept
