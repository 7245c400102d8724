"""A cluster from its inventory directory, checked whole: every problem at once, each with file and line.

    cluster = load("local", root)
    cluster.ports.amqp, cluster.nodes_on("localhost"), cluster.to_ansible()

Ansible reads the same directory. What Ansible would read and the kit would not (other inventory files,
kit settings in other group_vars) is refused, so that nothing about a cluster is silently ignored.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from clusterkit.ops import hostgroups, rules
from clusterkit.ops.errors import InventoryError
from clusterkit.ops.messages import describe, is_consequence
from clusterkit.ops.model import (
    AppSource,
    AutoConcurrency,
    Cluster,
    Host,
    Ports,
    QueueSettings,
    Settings,
    WorkerNode,
)
from clusterkit.ops.suggest import did_you_mean
from clusterkit.ops.yamlsource import Document, KeyPath, Position, Problem, read, spell
from clusterkit.runtime.errors import NoClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "AppSource",
    "AutoConcurrency",
    "Cluster",
    "Host",
    "Ports",
    "QueueSettings",
    "Settings",
    "WorkerNode",
    "clusters",
    "load",
]

HOSTS_FILE: Final = "hosts.yml"
_CLUSTER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_VARIABLE_FILE_ENDINGS = ("", ".yml", ".yaml", ".json")
#: Endings of files that Ansible passes over in an inventory directory (its REJECT_EXTS and defaults).
_NOT_INVENTORY = (
    *(".pyc", ".pyo", ".swp", ".bak", "~", ".rpm", ".md", ".txt", ".rst"),
    *(".orig", ".cfg", ".retry"),
)
_INVENTORY_FOLDERS = ("group_vars", "host_vars")


def load(cluster: str | Path, root: Path) -> Cluster:
    """Return the cluster ``cluster`` of the checkout ``root``.

    ``cluster`` is a name below `deploy/clusters/` or the path of an inventory directory. Settings come
    from group_vars/all.yml, or from the files of group_vars/all/ in the order of their names, where a
    later file replaces a whole top-level key, as Ansible does by default.

    Raises:
        NoClusterError: there is no such inventory.
        InventoryError: it is wrong; has every problem found.
    """
    root = root.resolve()
    directory = _find(cluster, root)
    return _Loader(directory, root).load()


def clusters(root: Path) -> list[str]:
    """Return the names of the inventories below `deploy/clusters/` of the checkout ``root``."""
    return sorted(file.parent.name for file in (root / "deploy" / "clusters").glob(f"*/{HOSTS_FILE}"))


def _find(cluster: str | Path, root: Path) -> Path:
    named = root / "deploy" / "clusters" / cluster
    if _CLUSTER_NAME.fullmatch(str(cluster)) and named.is_dir():
        return named.resolve()
    path = Path(cluster).expanduser()
    if path.is_dir() and (len(path.parts) > 1 or (path / HOSTS_FILE).is_file()):
        return path.resolve()
    known = clusters(root)
    hint = did_you_mean(str(cluster), known, otherwise="Clusters") if known else "There are none"
    raise NoClusterError(
        f"there is no cluster {str(cluster)!r} below {root / 'deploy' / 'clusters'}. {hint}",
        next_step="give the name of a directory there, or the path of an inventory directory",
    )


class _Loader:
    """One reading of one inventory; collects problems until the end."""

    def __init__(self, directory: Path, root: Path) -> None:
        self.directory = directory
        self.root = root
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.complained: set[KeyPath] = set()
        self.raw: dict[str, Any] = {}
        self.positions: dict[KeyPath, Position] = {}

    def load(self) -> Cluster:
        """Return the cluster, or raise with all that is wrong."""
        self._check_directory()
        groups = self._read_hosts()
        self._read_other_variables()
        settings = self._read_settings(groups) if self._read_all_variables() else None
        if self.problems or settings is None:
            raise self._error()
        return self._cluster(settings, groups)

    def _check_directory(self) -> None:
        if not _CLUSTER_NAME.fullmatch(self.directory.name):
            self._complain(
                self.directory,
                "the directory's name is the cluster's: at most 40 lower-case letters, digits, - and _",
            )
        for entry in sorted(self.directory.iterdir()):
            name = entry.name
            if name in (HOSTS_FILE, *_INVENTORY_FOLDERS) or name.startswith("."):
                continue
            if not name.endswith(_NOT_INVENTORY):
                self._complain(
                    entry,
                    f"Ansible would read this as part of the inventory, the kit reads only {HOSTS_FILE}",
                )

    def _read_hosts(self) -> hostgroups.HostGroups:
        groups = hostgroups.parse(read(self.directory / HOSTS_FILE))
        self.problems += groups.problems
        return groups

    def _all_files(self) -> list[Path]:
        """Return the files that Ansible reads for the group all, in its order."""
        folder = self.directory / "group_vars"
        found = [path for ending in _VARIABLE_FILE_ENDINGS if (path := folder / f"all{ending}").exists()]
        if not found:
            self._complain(folder / "all.yml", "there is no such file")
            return []
        for path in found[1:]:
            self._complain(path, f"Ansible reads only {found[0].name} of the two: move the settings together")
        return self._files_below(found[0]) if found[0].is_dir() else [found[0]]

    def _files_below(self, folder: Path) -> list[Path]:
        files = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name.endswith("~"):
                continue
            if path.is_dir():
                self._complain(path, "directories below group_vars/all are not read by the kit")
            elif path.suffix in _VARIABLE_FILE_ENDINGS:
                files.append(path)
        return files

    def _read_all_variables(self) -> bool:
        """Merge the files of group_vars/all; return whether all of them could be read."""
        files = self._all_files()
        readable = bool(files)
        for file in files:
            document = read(file)
            self.problems += document.problems
            self.complained |= {problem.path for problem in document.problems}
            if document.encrypted:
                self._warn(
                    Position(file), (), "is encrypted and not read; the kit's settings must not be in it"
                )
            elif isinstance(document.data, dict):
                self._merge(document)
            elif document.data is None:
                readable = readable and not document.problems
            else:
                readable = False
                self._complain(file, "must be a mapping: `key: value` lines")
        return readable

    def _merge(self, document: Document) -> None:
        for key, value in document.data.items():
            if key.startswith("ansible_"):
                continue
            self.positions = {path: place for path, place in self.positions.items() if path[:1] != (key,)}
            self.raw[key] = value
        self.positions |= document.positions

    def _read_other_variables(self) -> None:
        """Refuse settings where Ansible reads them and the kit does not."""
        for folder in _INVENTORY_FOLDERS:
            for file in sorted((self.directory / folder).glob("**/*")):
                below = file.relative_to(self.directory / folder)
                of_all = folder == "group_vars" and below.parts[0].partition(".")[0] == "all"
                if not of_all and file.is_file() and file.suffix in _VARIABLE_FILE_ENDINGS:
                    document = read(file)
                    self.problems += document.problems
                    self.problems += hostgroups.only_ansible_variables(
                        document, document.data, (), "in this file"
                    )

    def _read_settings(self, groups: hostgroups.HostGroups) -> Settings | None:
        self._add(_templates(self.raw, ()))
        try:
            settings = Settings.model_validate(self._with_home(self.raw))
        except ValidationError as error:
            settings = None
            self._add(
                describe(detail) for detail in error.errors(include_url=False) if not is_consequence(detail)
            )
        written = rules.Written(self.raw, groups.members, tuple(groups.hosts), self.root)
        self._add(rules.problems(written))
        for path, message in rules.warnings(written):
            self._warn(self._position(path), path, message)
        return settings

    def _with_home(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Return the settings with an absolute ``home``: only here is known what it is relative to."""
        home = raw.get("home", f".cluster/{self.directory.name}")
        if raw.get("service_backend") != "supervisor" or not isinstance(home, str):
            return raw
        return {**raw, "home": (self.root / Path(home).expanduser()).resolve()}

    def _cluster(self, settings: Settings, groups: hostgroups.HostGroups) -> Cluster:
        nodes = tuple(
            node.model_copy(update={"hosts": node.hosts or groups.members["workers"]})
            for node in settings.worker_nodes
        )
        return Cluster.model_validate(
            {
                **dict(settings),
                "worker_nodes": nodes,
                "name": self.directory.name,
                "directory": self.directory,
                "root": self.root,
                "members": groups.members,
                "hosts": groups.hosts,
                "ports_place": self._ports_place(),
                "warnings": tuple(self._line(warning) for warning in self.warnings),
            }
        )

    def _ports_place(self) -> str:
        """Return where ports are chosen, for messages about a taken one: `file:line` if it is written."""
        path: KeyPath = ("ports",) if ("ports",) in self.positions else ("port_base",)
        written = path in self.positions
        return self._place(self._position(path) if written else Position(self._position(()).file))

    def _add(self, findings: Iterable[rules.Finding]) -> None:
        """Add findings, at most one per place: the first is the cause, the others follow from it."""
        for path, message in findings:
            if path not in self.complained:
                self.complained.add(path)
                self.problems.append(Problem(self._position(path), path, message))

    def _position(self, path: KeyPath) -> Position:
        """Return the place of ``path``, or of the nearest thing around it that was written."""
        while path not in self.positions:
            if not path:
                return Position(self.directory / "group_vars" / "all.yml")
            path = path[:-1]
        return self.positions[path]

    def _complain(self, file: Path, message: str) -> None:
        self.problems.append(Problem(Position(file), (), message))

    def _warn(self, position: Position, path: KeyPath, message: str) -> None:
        self.warnings.append(Problem(position, path, message))

    def _line(self, problem: Problem) -> str:
        where = f"{spell(problem.path)}: " if problem.path else ""
        return f"{self._place(problem.position)}: {where}{problem.message}"

    def _place(self, position: Position) -> str:
        file = _shown(position.file, self.root)
        return f"{file}:{position.line}" if position.line else str(file)

    def _error(self) -> InventoryError:
        ordered = sorted(self.problems, key=lambda problem: problem.position)
        lines = list(dict.fromkeys(self._line(problem) for problem in ordered))
        count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
        return InventoryError(
            f"the inventory of the cluster {self.directory.name!r} has {count}:",
            lines,
            next_step="correct the lines above and run the command again; nothing was changed",
        )


def _shown(file: Path, root: Path) -> Path:
    """Return ``file`` as somebody in the current directory would write it."""
    for base in (Path.cwd(), root):
        if file.is_relative_to(base):
            return file.relative_to(base)
    return file


def _templates(value: Any, path: KeyPath) -> Iterator[rules.Finding]:
    """Yield the texts that Ansible would fill in: the kit takes them as they stand."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _templates(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _templates(item, (*path, index))
    elif isinstance(value, str) and ("{{" in value or "{%" in value):
        yield path, "is a template; the kit's settings are read as they stand, write the value itself"
