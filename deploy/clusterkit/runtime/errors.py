"""Every error the kit raises on purpose, each with the exit code its command ends with.

One tree serves the clients and the operator's command, so that a script can tell kinds of
failure apart by number whatever it called. Only ``main()`` functions catch it.
"""

from __future__ import annotations

import sys

from kombu.exceptions import OperationalError


class ClusterkitError(Exception):
    """A failure the kit understands: says what failed and what to do next.

    ``next_step`` is a sentence or a command for the person reading; ``exit_code`` is what the
    process ends with.
    """

    exit_code = 1

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step


class BadInputError(ClusterkitError):
    """An argument is not of the form it should have (the same code as a usage error)."""

    exit_code = 2


class ClusterUnreachableError(ClusterkitError):
    """The broker or the result store did not answer within the deadline."""

    exit_code = 6


class TaskFailedError(ClusterkitError):
    """The task ran and raised."""

    exit_code = 9


class UnknownTaskError(ClusterkitError):
    """No release on the cluster has a task of that name."""

    exit_code = 10


class WaitTimeoutError(ClusterkitError):
    """The result was not there in time; the task itself goes on."""

    exit_code = 11


class PublishTimeoutError(ClusterkitError, OperationalError):
    """The broker did not confirm a message in time; whether it has it is unknown.

    Also Celery's own OperationalError, which callers of ``apply_async`` already handle.
    """

    exit_code = 12


class NoClusterError(ClusterkitError):
    """There is no cluster of that name, or it was never brought up from this checkout."""

    exit_code = 13


class RefusedError(ClusterkitError):
    """The broker has not taken a message, and will not: no queue for it, or a queue that stays full."""

    exit_code = 14


class InterruptedByUserError(ClusterkitError):
    """Ctrl-C while waiting; says how to get the results later."""

    exit_code = 130


def report(error: ClusterkitError) -> int:
    """Print an error and the next step on standard error; return its exit code."""
    print(f"error: {error}", file=sys.stderr)  # noqa: T201 - this is a script's voice
    if error.next_step:
        print(f"next:  {error.next_step}", file=sys.stderr)  # noqa: T201
    return error.exit_code
