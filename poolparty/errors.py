"""What can go wrong, and the HTTP status each kind maps to: the one place that knows it.

    PoolpartyError              500   something of ours that nobody expected
    ├── ConfigError             -     the configuration cannot be served: the start, or a reload, ends with it
    ├── ControlError            -     a control command failed: the text of its `ERROR:` line
    ├── RequestError            4xx, 501, 505   the client erred; the status is the error's own
    ├── Overloaded              503   no child in time, or no room in the queue
    ├── ChildFailed             502   the child ended before its answer did
    │   ├── FrameError          502   it broke the framing: nothing more it says can be trusted, it is ended
    │   └── AnswerError         502   well framed, but HTTP cannot carry it: the child lives
    └── ChildTimedOut           504   it took longer than worker_request_timeout: it is ended

Imported by every process of ours, the child's library excepted; so it imports nothing, gunicorn included.
"""

from __future__ import annotations

from typing import ClassVar

# What a request may be refused with before a child is asked; any other status is a mistake of ours.
REQUEST_STATUSES = frozenset({400, 408, 413, 414, 417, 421, 431, 500, 501, 505, 507})


class PoolpartyError(Exception):
    """The root; `http_status` is what a client is told when nothing more precise is known."""

    http_status: int = 500


class ConfigError(PoolpartyError):
    """One sentence that names the option, its value, what is wrong with it and what to do."""


class ControlError(PoolpartyError):
    """A control command that failed; `str(error)` stands behind `ERROR: ` on the socket, on one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class RequestError(PoolpartyError):
    """A request that is refused; the message is the sentence the client gets as the body.

    Raises ValueError for a status outside REQUEST_STATUSES.
    """

    def __init__(self, status: int, message: str) -> None:
        if status not in REQUEST_STATUSES:
            raise ValueError(f"status {status} is not one a request can be refused with")
        super().__init__(message)
        self.http_status = status

    @property
    def status(self) -> int:
        return self.http_status


class Overloaded(PoolpartyError):
    """No child was free in time, or the queue is full; answered with Retry-After."""

    http_status = 503
    default_message: ClassVar[str] = "server overloaded"

    def __init__(self, message: str = default_message) -> None:
        super().__init__(message)


class ChildFailed(PoolpartyError):
    """The child that ran the request ended, or cannot be understood, before its answer was complete."""

    http_status = 502


class FrameError(ChildFailed):
    """Bytes that are no frame of the protocol: an unknown tag, a length beyond the frame, trailing bytes."""


class AnswerError(ChildFailed):
    """A whole frame whose status or headers HTTP cannot carry; the message names which."""


class ChildTimedOut(PoolpartyError):
    """The child did not answer within worker_request_timeout."""

    http_status = 504
