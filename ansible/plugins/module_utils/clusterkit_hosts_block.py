"""The block of a cluster's names in /etc/hosts."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class HostsFileError(Exception):
    """The file is not as the kit left it, or the host does not use it."""


def begin(cluster: str) -> str:
    """Return the line with which the cluster's block begins."""
    return f"# BEGIN clusterkit {cluster}"


def end(cluster: str) -> str:
    """Return the line with which the cluster's block ends."""
    return f"# END clusterkit {cluster}"


def block(cluster: str, entries: Iterable[Mapping[str, str]]) -> str:
    """Return the block with one line per address and name; an empty text without any."""
    lines = [f"{entry['address']} {entry['name']}\n" for entry in entries]
    return "".join([f"{begin(cluster)}\n", *lines, f"{end(cluster)}\n"]) if lines else ""


def with_block(text: str, cluster: str, wanted: str) -> str:
    """Return the file `text` with the cluster's block replaced by `wanted`, or with it at the end.

    Raises:
        HostsFileError: the block's beginning or end is missing, or there twice.
    """
    lines = text.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if line.strip() == begin(cluster)]
    ends = [number for number, line in enumerate(lines) if line.strip() == end(cluster)]
    if not starts and not ends:
        gap = "" if not text or text.endswith("\n") or not wanted else "\n"
        return text + gap + wanted
    if len(starts) != 1 or len(ends) != 1 or ends[0] < starts[0]:
        raise HostsFileError(
            f"it must have the lines {begin(cluster)!r} and {end(cluster)!r} once each, in this order;"
            " remove what is left of that block"
        )
    return "".join(lines[: starts[0]]) + wanted + "".join(lines[ends[0] + 1 :])


def check_names(entries: Iterable[Mapping[str, str]]) -> None:
    """Check that the host finds each name at its address.

    Raises:
        HostsFileError: it looks for names elsewhere first.
    """
    for entry in entries:
        try:
            found = {
                str(item[4][0]) for item in socket.getaddrinfo(entry["name"], None, type=socket.SOCK_STREAM)
            }
        except OSError as error:
            found = {str(error.strerror or error)}
        if entry["address"] not in found:
            raise HostsFileError(
                f"{entry['name']} is at {entry['address']}, but the host finds: {', '.join(sorted(found))};"
                " `hosts:` in /etc/nsswitch.conf has to begin with `files`"
            )
