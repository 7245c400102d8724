"""The hosts and groups of an inventory's hosts.yml, in Ansible's YAML form."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_args

from clusterkit.ops.model import GROUPS, Group, Host
from clusterkit.ops.suggest import did_you_mean
from clusterkit.ops.yamlsource import Position, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clusterkit.ops.yamlsource import Document, KeyPath

#: Groups whose hosts decide by majority, and how many they may be. An even number survives no more lost
#: hosts than one less; RabbitMQ advises against more than 7 members of a quorum queue.
MAJORITY_GROUPS: Final[dict[str, tuple[int, ...]]] = {"brokers": (1, 3, 5, 7), "results": (1, 3, 5)}

#: The kit's own variable of a host.
ADDRESS_VARIABLE: Final = "cluster_address"

_SECTIONS = ("hosts", "children", "vars")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_RANGE = re.compile(r"\[(\d+):(\d+)(?::(\d+))?\]")
#: A range of more hosts than this is a typing mistake.
_LONGEST_RANGE = 1_000
_NEEDED = ", ".join(GROUPS)


@dataclass
class HostGroups:
    """What hosts.yml says; ``problems`` is empty when all of it makes sense."""

    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def parse(document: Document) -> HostGroups:
    """Work out which host is in which group."""
    if document.problems:
        return HostGroups(problems=list(document.problems))
    reader = _Reader(document)
    reader.read()
    return HostGroups(*reader.resolve(), problems=reader.problems)


def only_ansible_variables(
    document: Document, value: Any, path: KeyPath, place: str, besides: tuple[str, ...] = ()
) -> Iterator[Problem]:
    """Yield a problem for each variable below ``path`` that is not Ansible's own (`ansible_*`)."""
    if value is None:
        return
    if not isinstance(value, dict):
        yield Problem(document.positions[path], path, "must be a mapping of variables")
        return
    for key in value:
        if not key.startswith("ansible_") and key not in besides:
            yield Problem(
                document.positions[*path, key],
                (*path, key),
                f"has no effect {place}: the kit's settings belong in group_vars/all.yml,"
                " only ansible_* variables may stand here",
            )


def expand(pattern: str) -> list[str]:
    """Return the host names that Ansible's numeric ranges in ``pattern`` stand for: `h[01:03]`.

    Raises:
        ValueError: the pattern is none, or names no host.
    """
    match = _RANGE.search(pattern)
    if not match:
        if not _HOST.fullmatch(pattern):
            raise ValueError("is no host name: letters, digits, dots, - and _ (a range is written h[1:3])")
        return [pattern]
    first, last, step = match[1], match[2], int(match[3] or 1)
    numbers = range(int(first), int(last) + 1, step) if step else range(0)
    if not 0 < len(numbers) <= _LONGEST_RANGE:
        raise ValueError(f"stands for {len(numbers)} hosts; a range is written h[1:3], the lower end first")
    width = len(first) if first.startswith("0") else 0
    return [
        name
        for number in numbers
        for name in expand(f"{pattern[: match.start()]}{number:0{width}d}{pattern[match.end() :]}")
    ]


def _address(variables: dict[str, Any]) -> Any:
    return variables.get(ADDRESS_VARIABLE, variables.get("ansible_host"))


class _Reader:
    """One pass over hosts.yml."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = list(document.problems)
        self.direct: dict[str, dict[str, None]] = {}
        self.children: dict[str, dict[str, None]] = {}
        self.places: dict[str, KeyPath] = {}
        self.host_places: dict[str, KeyPath] = {}
        self.addresses: dict[str, str] = {}

    def read(self) -> None:
        data = self.document.data
        if not isinstance(data, dict):
            self._complain((), "names no groups" if data is None else "must be a mapping of groups")
            return
        for group, body in data.items():
            self._group(group, body, (group,))

    def _group(self, group: str, body: Any, path: KeyPath) -> None:
        if group not in (*GROUPS, "all"):
            self._complain(path, f"unknown group. {did_you_mean(group, GROUPS, otherwise='Groups')}")
        self.places.setdefault(group, path)
        self.direct.setdefault(group, {})
        self.children.setdefault(group, {})
        if body is None:
            return
        if not isinstance(body, dict):
            self._complain(path, "must be a mapping with hosts, children or vars")
            return
        for section, content in body.items():
            self._section(group, section, content, (*path, section))

    def _section(self, group: str, section: str, content: Any, path: KeyPath) -> None:
        if section not in _SECTIONS:
            self._complain(path, f"unknown key. {did_you_mean(section, _SECTIONS)}")
        elif section == "vars":
            self.problems += only_ansible_variables(self.document, content, path, "in hosts.yml")
        elif content is not None and not isinstance(content, dict):
            self._complain(
                path, f"must be a mapping: each of the {section} is a key (`name:`, without a dash)"
            )
        elif section == "children":
            for child, body in (content or {}).items():
                self.children[group][child] = None
                self._group(child, body, (*path, child))
        else:
            for pattern, variables in (content or {}).items():
                self._hosts(group, pattern, variables, (*path, pattern))

    def _hosts(self, group: str, pattern: str, variables: Any, path: KeyPath) -> None:
        try:
            names = expand(pattern)
        except ValueError as error:
            self._complain(path, str(error))
            return
        self.problems += only_ansible_variables(
            self.document, variables, path, "in hosts.yml", besides=(ADDRESS_VARIABLE,)
        )
        address = _address(variables) if isinstance(variables, dict) else None
        for name in names:
            if name in GROUPS:
                self._complain(
                    path, f"{name!r} is what the hosts call the whole group: name the host otherwise"
                )
            self.direct[group][name] = None
            self.host_places.setdefault(name, path)
            if isinstance(address, str) and "{{" not in address:
                self.addresses[name] = address

    def resolve(self) -> tuple[dict[str, tuple[str, ...]], dict[str, Host]]:
        """Return the hosts of each group, children's included, and every host."""
        members = {group: self._members(group, ()) for group in GROUPS}
        if isinstance(self.document.data, dict):
            for group in GROUPS:
                self._check_size(group, members[group])
        hosts = {}
        for name, path in self.host_places.items():
            groups: tuple[Group, ...] = tuple(group for group in GROUPS if name in members[group])
            if not groups and not self.problems:
                self._complain(path, f"is in none of the groups {_NEEDED}: nothing would run on it")
            hosts[name] = Host(name=name, groups=groups, address=self.addresses.get(name, name))
        return {group: members[group] for group in get_args(Group)}, hosts

    def _members(self, group: str, parents: tuple[str, ...]) -> tuple[str, ...]:
        if group in parents:
            self._complain(self.places[group], "is a child of itself")
            return ()
        found = dict(self.direct.get(group, {}))
        for child in self.children.get(group, {}):
            found |= dict.fromkeys(self._members(child, (*parents, group)))
        return tuple(found)

    def _check_size(self, group: str, hosts: tuple[str, ...]) -> None:
        if group not in self.places:
            message = f"the group {group} is missing; a cluster has {_NEEDED}"
            self.problems.append(Problem(Position(self.document.file), (), message))
        elif not hosts and not self._complained_below(self.places[group]):
            self._complain(self.places[group], "the group has no hosts")
        elif group in MAJORITY_GROUPS and len(hosts) not in MAJORITY_GROUPS[group]:
            allowed = " or ".join(map(str, MAJORITY_GROUPS[group]))
            self._complain(
                self.places[group],
                f"has {len(hosts)} hosts ({', '.join(hosts)}), must have {allowed}: they decide by majority",
            )

    def _complained_below(self, path: KeyPath) -> bool:
        return any(problem.path[: len(path)] == path for problem in self.problems)

    def _complain(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.document.positions[path], path, message))
