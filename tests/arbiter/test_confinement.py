"""What a child is kept within, read back in a real child; what cannot be given is a sentence."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from gunicorn.config import Config

from poolparty.arbiter import children, confinement
from poolparty.arbiter.children import Recipe
from poolparty.arbiter.environment import kept
from poolparty.errors import ConfigError
from poolparty.settings import Options

NOT_ROOT = os.geteuid() != 0


def options(**values: object) -> Options:
    cfg = Config()
    for name, value in {"pool_cmd": "true", **values}.items():
        cfg.set(name, value)
    return Options.from_cfg(cfg)


def run(program: str, **values: object) -> tuple[int, str]:
    """Start a child of these options that runs a Python program; its exit code and what it printed."""
    cfg = Config()
    for name, value in values.items():
        cfg.set(name, value)
    cfg.set("pool_cmd", [sys.executable, "-I", "-S", "-c", program])
    return run_recipe(Recipe.from_cfg(Options.from_cfg(cfg), cfg))


def run_recipe(recipe: Recipe) -> tuple[int, str]:
    process = children.start(recipe, None)
    os.set_blocking(process.output, True)
    os.close(process.stdin)
    with open(process.output) as output:
        text = output.read()
    os.close(process.fd3)
    if process.pidfd >= 0:
        os.close(process.pidfd)
    return process.popen.wait(), text


LIMITS = "import resource; print(*resource.getrlimit(resource.RLIMIT_{}))"


@pytest.mark.parametrize(
    ("option", "value", "name", "printed"),
    [
        ("worker_rlimit_as", "512M", "AS", f"{512 << 20} {512 << 20}"),
        ("worker_rlimit_nofile", 99, "NOFILE", "99 99"),
        ("worker_rlimit_cpu", "1m", "CPU", "60 65"),
        ("worker_rlimit_core", 0, "CORE", "0 0"),
    ],
)
def test_a_limit_is_the_childs(option: str, value: object, name: str, printed: str) -> None:
    ours = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    assert run(LIMITS.format(name), **{option: value}) == (0, printed + "\n")
    assert resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) == ours


def test_a_child_starts_with_as_little_address_space_as_may_be_given() -> None:
    cfg = Config()
    cfg.set("pool_cmd", ["sh", "-c", "ulimit -v"])
    cfg.set("worker_rlimit_as", "32M")
    assert run_recipe(Recipe.from_cfg(Options.from_cfg(cfg), cfg)) == (0, f"{32 << 10}\n")


def test_a_child_out_of_address_space_gets_an_error_and_nobody_else_does() -> None:
    program = "try: bytearray(1 << 30)\nexcept MemoryError: print('no memory')"
    assert run(program, worker_rlimit_as="512M") == (0, "no memory\n")
    assert run(program, worker_rlimit_as="4G") == (0, "")


def test_a_child_out_of_processor_time_is_ended() -> None:
    code, _ = run("while True: pass", worker_rlimit_cpu=1, worker_rlimit_core=0)
    assert code == -signal.SIGXCPU


def test_the_files_a_child_may_open_are_its_own_option_whatever_is_given_back() -> None:
    recipe = Recipe.from_cfg(options(pool_cmd=["sh", "-c", "ulimit -Sn"], worker_rlimit_nofile=77), Config())
    process = children.start(recipe, 50)
    os.set_blocking(process.output, True)
    with open(process.output) as output:
        assert output.read() == "77\n"
    for fd in (process.stdin, process.fd3, process.pidfd):
        os.close(fd)
    process.popen.wait()


def test_a_child_is_nicer_than_the_server() -> None:
    assert run("import os; print(os.nice(0))", worker_nice=3) == (0, f"{min(os.nice(0) + 3, 19)}\n")


def test_no_new_privs_is_the_childs_and_not_the_servers() -> None:
    program = "print([l for l in open('/proc/self/status') if l.startswith('NoNewPrivs')][0], end='')"
    assert run(program, worker_no_new_privs=True) == (0, "NoNewPrivs:\t1\n")
    assert "NoNewPrivs:\t1" not in Path("/proc/self/status").read_text()


def test_the_oom_score_is_the_childs() -> None:
    ours = Path("/proc/self/oom_score_adj").read_text()
    assert run("print(open('/proc/self/oom_score_adj').read())", worker_oom_score_adj=777)[1] == "777\n\n"
    assert Path("/proc/self/oom_score_adj").read_text() == ours


def test_all_of_it_at_once_still_dies_with_its_parent() -> None:
    program = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    what = {"worker_rlimit_as": "2G", "worker_rlimit_core": 0, "worker_nice": 1, "worker_no_new_privs": True}
    assert run(program, worker_oom_score_adj=100, **what) == (0, "9\n")


@pytest.mark.skipif(NOT_ROOT, reason="only root may change to another user")
def test_all_of_it_holds_for_another_user_too() -> None:
    recipe = dataclasses.replace(
        Recipe.from_cfg(
            options(
                pool_cmd=["sh", "-c", "id -u; ulimit -n; cat /proc/self/oom_score_adj; nice"],
                worker_rlimit_nofile=64,
                worker_oom_score_adj=300,
                worker_nice=2,
                worker_no_new_privs=True,
            ),
            Config(),
        ),
        user=65534,
        group=65534,
        groups=(65534,),
    )
    assert run_recipe(recipe) == (0, f"65534\n64\n300\n{min(os.nice(0) + 2, 19)}\n")


# --- what cannot be given ----------------------------------------------------------------------------------


def test_what_the_kernel_refuses_in_the_child_is_a_sentence_and_the_program_does_not_run() -> None:
    recipe = Recipe.from_cfg(options(pool_cmd=["echo", "it runs"]), Config())
    code, text = run_recipe(dataclasses.replace(recipe, confinement=("worker_oom_score_adj=5000",)))
    assert (code, text) == (126, "cannot set worker_oom_score_adj to 5000: Invalid argument\n")


def test_a_limit_beyond_the_servers_own_is_a_sentence_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda number: (100, 100))
    monkeypatch.setattr(confinement, "has_capability", lambda number: False)
    confinement.check_rights(options(worker_rlimit_nofile=100))
    for value, shown in ((101, "101"), ("unlimited", "'unlimited'")):
        with pytest.raises(ConfigError) as caught:
            confinement.check_rights(options(worker_rlimit_nofile=value))
        assert str(caught.value) == (
            f"worker_rlimit_nofile = {shown}: the server's own hard limit is 100; "
            "lower the one or raise the other."
        )
    monkeypatch.setattr(confinement, "has_capability", lambda number: True)
    confinement.check_rights(options(worker_rlimit_nofile=101))


@pytest.mark.parametrize(("option", "value"), [("worker_nice", -1), ("worker_oom_score_adj", -1000)])
def test_a_privilege_the_server_lacks_is_a_sentence_at_its_start(
    option: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement, "has_capability", lambda number: False)
    with pytest.raises(ConfigError, match=rf"^{option} = {value}: the server .*\(CAP_SYS_.*\.$"):
        confinement.check_rights(options(**{option: value}))


def test_by_default_a_child_has_what_the_server_has_and_no_word_more() -> None:
    assert confinement.words_for_launcher(options()) == ()


# --- environment -------------------------------------------------------------------------------------------


def test_of_the_environment_what_is_listed_is_kept() -> None:
    base = {"PATH": "/bin", "LC_ALL": "C", "LC_": "x", "LCX": "y", "SECRET": "s", "PATHS": "t"}
    assert kept(base, ("PATH", "LC_*", "MISSING")) == {"PATH": "/bin", "LC_ALL": "C", "LC_": "x"}
    assert kept(base, ()) == {}
    assert kept(base, ("*",)) == base


def test_a_cleared_environment_holds_what_raw_env_sets_and_the_way_to_our_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hidden")
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    program = (
        "import os; print(*sorted(os.environ), os.environ['PYTHONPATH'].split('/')[-1], os.environ['A'])"
    )
    code, text = run(program, worker_env_clear=True, raw_env=["A=b", "DATABASE_URL=given"])
    names = text.split()
    assert code == 0
    assert {"PATH", "TZ", "A", "DATABASE_URL", "POOLPARTY_FEATURES", "RUBYLIB"} <= set(names)
    assert "DATABASE_PASSWORD" not in names
    assert names[-2:] == ["python", "b"]


def test_the_list_of_what_is_kept_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_HOST", "db")
    monkeypatch.setenv("TZ", "UTC")
    program = "import os; print('DATABASE_HOST' in os.environ, 'TZ' in os.environ)"
    code, text = run(program, worker_env_clear=True, worker_env_keep=["PATH", "DATABASE_*"])
    assert (code, text) == (0, "True False\n")
