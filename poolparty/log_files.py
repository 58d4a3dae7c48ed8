"""Reopening the log files, at SIGUSR1 and at a reload, so that no state of a disk ends the process.

gunicorn's way closes a file first and opens it then: on a full disk the first fails, since what is still in
the buffer cannot be written; without the directory the second does, and so does each line logged later.
Both would leave through the arbiter's main loop, and end the server. Here a file that cannot be opened anew
stays as it was. Runs in the arbiter and in HTTP workers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any

from gunicorn.glogging import Logger, loggers


def reopen(log: Any) -> None:
    """What gunicorn's Logger.reopen_files does, without its exceptions; a logger class of the user's own that
    has another way is asked to go it."""
    if type(log).reopen_files is not Logger.reopen_files:
        try:
            log.reopen_files()
        except Exception as error:
            log.error("The log files were not reopened: %s", error)
        return
    failures = []
    if log.cfg.capture_output and log.cfg.errorlog != "-":
        failures += _reopen_captured(log)
    for logger in loggers():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                failures += _reopen_handler(handler)
    for path, why in failures:
        log.error("The log %s was not reopened, the old file is written on: %s", path, why)


def _reopen_handler(handler: logging.FileHandler) -> list[tuple[str, str | None]]:
    try:
        stream = handler._open()
    except OSError as error:
        return [(handler.baseFilename, error.strerror)]
    handler.acquire()
    try:
        old, handler.stream = handler.stream, stream
    finally:
        handler.release()
    if old is not None:
        with contextlib.suppress(OSError):  # its last lines are lost; they were lost before
            old.close()
    return []


def _reopen_captured(log: Any) -> list[tuple[str, str | None]]:
    """The standard output and error of the process itself."""
    for stream in sys.stdout, sys.stderr:
        with contextlib.suppress(OSError):
            stream.flush()
    try:
        file = open(log.cfg.errorlog, "a+")  # noqa: SIM115 - for as long as the process lives
    except OSError as error:
        return [(log.cfg.errorlog, error.strerror)]
    with log.lock:
        old, log.logfile = log.logfile, file
        for stream in sys.stdout, sys.stderr:
            os.dup2(file.fileno(), stream.fileno())
    if old is not None:
        with contextlib.suppress(OSError):
            old.close()
    return []
