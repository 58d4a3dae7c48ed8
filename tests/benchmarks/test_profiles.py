"""What strace, py-spy and /proc print is read right."""

from __future__ import annotations

import os

from benchmarks import machine, processes, profile

STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.600000           6    100000           write
 30.00    0.300000           3     90000       120 read
 10.00    0.100000          20      5000           epoll_wait
------ ----------- ----------- --------- --------- ----------------
100.00    1.000000           5    195000       120 total
"""


def test_calls_are_counted_with_and_without_errors_and_without_the_sum() -> None:
    assert profile.strace_counts(STRACE) == {"write": 100_000, "read": 90_000, "epoll_wait": 5_000}


def test_a_function_is_counted_by_itself_and_with_what_it_calls() -> None:
    own, whole = profile.stacks(
        "main (a.py:1);work (a.py:5) 7\nmain (a.py:1) 2\nmain (a.py:2);work (a.py:9) 1\n"
    )
    assert own == {"work (a.py)": 8, "main (a.py)": 2}
    assert whole == {"work (a.py)": 8, "main (a.py)": 10}


def test_a_process_whose_name_holds_a_parenthesis_is_read() -> None:
    assert processes.stat_fields("12 (a) S 1) S 7 12 12")[:2] == ["S", "7"]


def test_this_process_is_found_in_the_tree_of_its_parent() -> None:
    assert os.getpid() in processes.tree(os.getppid())


def test_a_process_that_is_gone_costs_nothing() -> None:
    gone = 2**22 + 1  # beyond the largest pid
    assert processes.cpu(gone).total == 0
    assert processes.start_time(gone) is None
    assert processes.resident(gone) == 0


def test_the_machine_is_described_from_its_files() -> None:
    assert machine.processor("processor : 0\nmodel name\t: Some CPU 9000\n") == "Some CPU 9000"
    assert machine.memory("MemTotal:        4194304 kB\n") == "4.0 GiB"
    assert machine.system('NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12"\n') == "Debian GNU/Linux 12"


def test_the_description_has_no_host_name() -> None:
    described = " ".join(machine.describe().values())
    assert os.uname().nodename not in described
