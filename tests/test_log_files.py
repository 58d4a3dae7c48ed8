"""Log files are reopened whatever state the disk is in; nothing of it reaches whoever asked for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from poolparty import log_files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "error.log"


@pytest.fixture
def log(path: Path, tmp_path: Path) -> Iterator[Logger]:
    cfg = Config()
    cfg.set("errorlog", str(path))
    cfg.set("accesslog", str(tmp_path / "access.log"))
    log = Logger(cfg)
    yield log
    for logger in (log.error_log, log.access_log):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()


def test_a_rotated_file_is_left_and_a_new_one_begun(log: Logger, path: Path, tmp_path: Path) -> None:
    log.info("before")
    path.rename(tmp_path / "rotated")
    (tmp_path / "access.log").rename(tmp_path / "access.rotated")
    log_files.reopen(log)
    log.info("after")
    assert "before" in (tmp_path / "rotated").read_text()
    assert "after" in path.read_text() and "before" not in path.read_text()
    assert (tmp_path / "access.log").exists()


def test_a_full_disk_ends_nothing(log: Logger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's buffer holds lines that could not be written; closing it tries again, and fails."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    path.unlink()
    path.symlink_to("/dev/full")
    log_files.reopen(log)
    log.info("lost")
    path.unlink()
    log_files.reopen(log)
    log.info("kept")
    assert "kept" in path.read_text()


def test_without_its_directory_the_old_file_is_written_on(log: Logger, path: Path, tmp_path: Path) -> None:
    moved = path.parent.rename(tmp_path / "moved") / path.name
    log_files.reopen(log)
    log.info("after")
    assert "was not reopened, the old file is written on: No such file" in moved.read_text()
    assert moved.read_text().rstrip().endswith("after")
    assert not path.exists()


def test_no_descriptor_is_left_over(log: Logger) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        log_files.reopen(log)
    assert len(os.listdir("/proc/self/fd")) == len(before)


class TheirLogger(Logger):
    def reopen_files(self) -> None:
        raise OSError("theirs fails")


def test_a_logger_with_a_way_of_its_own_goes_it_and_ends_nothing(path: Path) -> None:
    cfg = Config()
    cfg.set("errorlog", str(path))
    log = TheirLogger(cfg)
    log_files.reopen(log)
    assert "The log files were not reopened: theirs fails" in path.read_text()
    for handler in list(log.error_log.handlers):
        log.error_log.removeHandler(handler)
        handler.close()
