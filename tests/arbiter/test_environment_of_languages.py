"""How Lua, Node, Tcl, R and Guile are led to their worker libraries, each by a variable of its own rules."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import poolparty.arbiter.environment
from poolparty.arbiter.environment import child_environment

SDK = poolparty.arbiter.environment.SDK


@pytest.mark.parametrize(
    ("name", "theirs", "expected"),
    [
        ("LUA_PATH", None, f";;{SDK}/lua/?.lua"),
        ("LUA_PATH", "", f";;{SDK}/lua/?.lua"),
        ("LUA_PATH", "/theirs/?.lua", f"/theirs/?.lua;{SDK}/lua/?.lua"),
        ("LUA_PATH", "/theirs/?.lua;;", f"/theirs/?.lua;;;{SDK}/lua/?.lua"),
        ("LUA_PATH_5_4", "/theirs/?.lua", f"/theirs/?.lua;{SDK}/lua/?.lua"),
        ("NODE_PATH", None, f"{SDK}/node"),
        ("NODE_PATH", "/theirs", f"/theirs:{SDK}/node"),
        ("R_LIBS", "/theirs", f"/theirs:{SDK}/r"),
        ("TCLLIBPATH", None, f"{SDK}/tcl"),
        ("TCLLIBPATH", "/theirs {/of them}", f"/theirs {{/of them}} {SDK}/tcl"),
        ("GUILE_LOAD_PATH", None, f"...:{SDK}/guile"),
        ("GUILE_LOAD_PATH", "/theirs", f"/theirs:...:{SDK}/guile"),
        ("GUILE_LOAD_PATH", "...:/theirs", f"...:/theirs:{SDK}/guile"),
    ],
)
def test_our_libraries_stand_behind_the_users_own(name: str, theirs: str | None, expected: str) -> None:
    base = {} if theirs is None else {name: theirs}
    environment = child_environment(base, ["true"])
    assert environment[name] == expected
    assert child_environment(environment, ["true"]) == environment


def test_variables_of_luas_versions_are_only_extended() -> None:
    assert not [name for name in child_environment({}, ["true"]) if name.startswith("LUA_PATH_")]


def test_a_folder_with_a_blank_is_one_element_of_tcls_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poolparty.arbiter.environment, "SDK", Path("/of ours"))
    environment = child_environment({}, ["true"])
    assert environment["TCLLIBPATH"] == "{/of ours/tcl}"
    assert child_environment(environment, ["true"]) == environment


LUAS = ["lua5.1", "lua5.2", "lua5.3", "lua5.4", "luajit"]


@pytest.mark.parametrize("lua", LUAS)
@pytest.mark.parametrize(
    "theirs", [{}, {"LUA_PATH": "./?.lua;;"}, {"LUA_PATH_5_4": ";;", "LUA_PATH_5_3": "/x/?.lua"}]
)
def test_a_lua_finds_the_library_and_what_it_had(lua: str, theirs: dict[str, str]) -> None:
    if shutil.which(lua) is None:
        if os.environ.get("CI"):
            pytest.fail(f"no {lua}: bin/install-interpreters has it")
        pytest.skip(f"no {lua}: bin/install-interpreters has it")
    base = {"PATH": os.environ["PATH"], **theirs}
    show = [lua, "-e", "io.write(package.path)"]
    before = subprocess.run(show, env=base, capture_output=True, text=True, check=True).stdout.split(";")
    after = subprocess.run(
        show, env=child_environment(base, show), capture_output=True, text=True, check=True
    ).stdout.split(";")
    assert after[-1] == f"{SDK}/lua/?.lua"
    assert [each for each in after[:-1] if each] == [each for each in before if each]
