"""What a wheel and an editable install hold: the hook at the top, every file of the worker libraries."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, since building leaves files behind."""
    major, minor = (int(part) for part in importlib.metadata.version("setuptools").split(".")[:2])
    if (major, minor) < (70, 1) and importlib.util.find_spec("wheel") is None:
        pytest.skip("needs setuptools 70.1, or wheel, to build without the network")
    copy = tmp_path_factory.mktemp("source") / "checkout"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.sock", "tests")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    return copy


def build(source: Path, kind: str, folder: Path) -> zipfile.ZipFile:
    """Calls the backend as pip does, without pip's isolation, which would fetch setuptools."""
    code = f"import setuptools.build_meta as backend; print(backend.build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(folder / done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def editable(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(source, "editable", tmp_path_factory.mktemp("editable"))


def test_the_wheel_holds_the_hook_and_everything_under_poolparty(
    source: Path, wheel: zipfile.ZipFile
) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        str(file.relative_to(source))
        for file in (source / "poolparty").rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert names == expected | {"_poolparty_hook.py", "poolparty_server.pth"}
    assert "poolparty/sdk/python/poolparty/__init__.py" in names


def test_the_editable_wheel_is_two_pth_files_and_no_import_hook_of_setuptools(
    source: Path, editable: zipfile.ZipFile
) -> None:
    names = {name for name in editable.namelist() if ".dist-info/" not in name}
    [path_file] = names - {"poolparty_server.pth"}
    assert path_file.startswith("__editable__") and path_file < "poolparty_server.pth"
    assert Path(editable.read(path_file).decode().strip()) == source


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_the_record_knows_the_pth_so_that_an_uninstall_takes_it_away(
    kind: str, request: pytest.FixtureRequest
) -> None:
    archive: zipfile.ZipFile = request.getfixturevalue(kind)
    content = archive.read("poolparty_server.pth")
    assert content == (ROOT / "poolparty_server.pth").read_bytes()
    [record] = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    lines = archive.read(record).decode().splitlines()
    assert f"poolparty_server.pth,sha256={digest},{len(content)}" in lines
    assert {line.split(",")[0] for line in lines} == set(archive.namelist())


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_the_commands_are_installed(kind: str, request: pytest.FixtureRequest) -> None:
    archive: zipfile.ZipFile = request.getfixturevalue(kind)
    [entry_points] = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    assert archive.read(entry_points).decode().split() == [
        *("[console_scripts]", "poolparty", "=", "poolparty.cli:main"),
        *("poolparty-compress", "=", "poolparty.compress:main"),
        *("poolparty-ctl", "=", "poolparty.ctl:main"),
    ]
