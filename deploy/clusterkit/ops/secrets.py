"""The passwords of a cluster: made once on the control machine, kept in one file that only its owner reads.

secrets = ensure(cluster.state_dir / "secrets.yml")
secrets.broker["worker"], secrets.results, secrets.to_ansible()
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets as randomness
import stat
import string
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import yaml

from clusterkit.ops.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Role = Literal["operator", "worker", "producer", "scheduler", "flower", "monitor"]

#: The broker's users: one for each kind of process or person, each with its own rights.
ROLES: Final[tuple[Role, ...]] = get_args(Role)

_HEADER = """\
# The passwords of this cluster. Made once by `make cluster-up` and used until the cluster is destroyed:
# a password changed here takes effect at the next `make cluster-up`. Keep this file to yourself.
"""
#: Letters and digits only: a password stands in URLs, configuration files and Erlang terms unescaped.
_ALPHABET = string.ascii_letters + string.digits
#: 32 of 62 characters are 190 bits.
_LENGTH = 32
_READABLE_BY_OTHERS = 0o077
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700


@dataclass(frozen=True)
class Secrets:
    """Every secret of one cluster; its ``repr`` shows none."""

    broker: Mapping[Role, str] = field(repr=False)
    """Passwords of the broker's users, by role."""
    results: str = field(repr=False)
    """Password of the result store."""
    flower: str = field(repr=False)
    """Password of Flower's web pages."""
    erlang_cookie: str = field(repr=False)
    """What broker nodes and their command line tools know each other by."""

    def to_ansible(self) -> dict[str, Any]:
        """Return the secrets as playbooks get them."""
        return {
            "broker": dict(self.broker),
            "results": self.results,
            "flower": self.flower,
            "erlang_cookie": self.erlang_cookie,
        }


def ensure(path: Path) -> Secrets:
    """Return the secrets in ``path``, making those that are not there yet.

    A new file gets mode 0600 in a directory of mode 0700. What the file holds is kept, so that a later
    version of the kit can add a user; the file is replaced in one step, and two runs at once agree.

    Raises:
        PreflightError: others may read the file, or it is not what this function writes.
    """
    with _locked(path.parent):
        content = _read(path) if path.exists() else {}
        complete = _filled_in(content, path)
        if complete != content:
            _write(path, complete)
    return Secrets(
        broker={role: complete["broker"][role] for role in ROLES},
        results=complete["results"],
        flower=complete["flower"],
        erlang_cookie=complete["erlang_cookie"],
    )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, making the directory first; a second process waits."""
    directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) != _DIRECTORY_MODE:
            os.fchmod(handle, _DIRECTORY_MODE)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & _READABLE_BY_OTHERS:
            raise PreflightError(
                f"{path} has mode {mode:04o}: others on this machine may have read the cluster's passwords",
                next_step=f"chmod 600 {path}  (or remove the file before the first `make cluster-up`)",
            )
        try:
            content = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError):
            # Neither the parser's message nor its cause: both quote the file.
            raise _damaged(path, "it is not valid YAML") from None
    if content is not None and not isinstance(content, dict):
        raise _damaged(path, "it is not a mapping")
    return content or {}


def _filled_in(content: dict[str, Any], path: Path) -> dict[str, Any]:
    broker = content.get("broker", {})
    if not isinstance(broker, dict):
        raise _damaged(path, "broker is not a mapping of users")
    complete = {
        **content,
        "broker": {**broker, **{role: broker.get(role) or _password() for role in ROLES}},
        **{name: content.get(name) or _password() for name in ("results", "flower", "erlang_cookie")},
    }
    for name, value in (*complete["broker"].items(), *complete.items()):
        if name != "broker" and not isinstance(value, str):
            raise _damaged(path, f"{name} is not text; put it in quotes")
    return complete


def _damaged(path: Path, reason: str) -> PreflightError:
    return PreflightError(
        f"{path} does not hold a cluster's passwords: {reason}",
        next_step="restore the file from a backup: the running cluster knows only the passwords it had",
    )


def _password() -> str:
    return "".join(randomness.choice(_ALPHABET) for _ in range(_LENGTH))


def _write(path: Path, content: dict[str, Any]) -> None:
    """Replace ``path`` in one step; whoever reads it sees the old file or the new one, never half of one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), _FILE_MODE)
            file.write(_HEADER + yaml.safe_dump(content, sort_keys=False))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
