"""Which processes belong to a cluster, and who listens on which port: read from /proc alone.

A process of a private cluster carries ``CLUSTERKIT_HOME=<home>`` in its environment: supervisord is
started with it and every child inherits it. Must run on Python 3.9, because preflight looks at hosts whose
Python is too old, to say so.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MARKER = "CLUSTERKIT_HOME"

# State "listening" in /proc/net/tcp (include/net/tcp_states.h, TCP_LISTEN).
_LISTEN = "0A"


@dataclass(frozen=True)
class Process:
    """A running process: its id, its parent's and its command line on one line."""

    pid: int
    parent: int
    command: str


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket: numeric address, port and the inode by which its owner is found."""

    address: str
    port: int
    inode: int


def _read(path: str) -> bytes:
    """Return the content of `path`, or nothing when it went away or may not be read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def environment(pid: int) -> dict[str, str]:
    """Return the environment `pid` was started with; empty when it is gone or another user's."""
    pairs = (item.partition(b"=") for item in _read(f"/proc/{pid}/environ").split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, sign, value in pairs if sign}


def home_of(pid: int) -> str | None:
    """Return the home of the cluster that `pid` belongs to, or None."""
    home = environment(pid).get(MARKER)
    return os.path.realpath(home) if home else None


def belongs_to(pid: int, home: str) -> bool:
    """Tell whether `pid` is a process of the cluster in `home` (an absolute path).

    A program that sets its title (setproctitle does) writes over its environment: such a process, recognised
    by an environment without a single variable, belongs when it works inside the home.
    """
    variables = environment(pid)
    if variables:
        return MARKER in variables and os.path.realpath(variables[MARKER]) == home
    try:
        directory = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return False
    return Path(home) in {directory, *directory.parents}


def describe(pid: int) -> Process | None:
    """Return what is known of `pid`, or None when it is gone or a zombie."""
    status = _read(f"/proc/{pid}/stat").decode(errors="replace")
    if not status:
        return None
    name = status[status.find("(") + 1 : status.rfind(")")]
    # proc(5): after the name in brackets come the state and the parent's id.
    state, parent = status[status.rfind(")") + 2 :].split()[:2]
    if state in "ZX":
        return None
    words = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").split()
    return Process(pid=pid, parent=int(parent), command=" ".join(words) or f"[{name}]")


def all_pids() -> list[int]:
    """Return the ids of all processes that can be seen."""
    return sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def cluster_processes(home: str) -> list[Process]:
    """Return the processes of the cluster in `home`, without this one and its ancestors."""
    home = os.path.realpath(home)
    kin = set(ancestors(os.getpid()))
    found = (describe(pid) for pid in all_pids() if pid not in kin and belongs_to(pid, home))
    return [process for process in found if process]


def ancestors(pid: int) -> Iterator[int]:
    """Yield `pid`, its parent, and so on up to the first process."""
    while pid > 0:
        yield pid
        process = describe(pid)
        pid = process.parent if process else 0


def _address(hexadecimal: str) -> str:
    """Turn the address of a line in /proc/net/tcp or tcp6 (words in the host's byte order) into text."""
    words = [int(hexadecimal[i : i + 8], 16) for i in range(0, len(hexadecimal), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)


def listeners() -> list[Listener]:
    """Return every listening TCP socket of this machine (of this network namespace)."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in _read(f"/proc/net/{table}").decode().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN:
                address, _, port = fields[1].partition(":")
                found.append(Listener(_address(address), int(port, 16), int(fields[9])))
    return found


def overlaps(listener: Listener, address: str) -> bool:
    """Tell whether `listener` keeps others from listening on `address` at its port.

    The wildcards hold every address; ``::`` the IPv4 ones too, unless IPV6_V6ONLY is set, which /proc does
    not show: the caller tries to bind before it complains.
    """
    wildcards = {"0.0.0.0", "::"}  # noqa: S104
    return listener.address == address or listener.address in wildcards or address in wildcards


def socket_owners(inodes: Iterable[int]) -> dict[int, int]:
    """Return inode -> process id for the sockets `inodes`, as far as their owners may be looked at."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[int, int] = {}
    for pid in all_pids() if wanted else []:
        for target in _open_files(pid):
            if target in wanted:
                # The oldest owner is the one to name: children inherit the socket.
                owners.setdefault(wanted[target], pid)
    return owners


def _open_files(pid: int) -> Iterator[str]:
    """Yield what the file descriptors of `pid` are, such as ``socket:[1234]``, if that may be seen."""
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return
    for link in links:
        try:
            yield str(link.readlink())
        except OSError:
            continue
