"""YAML files read with the place of every key, so that a problem can be told by file and line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The way from the top of a document to one value: keys of mappings and indexes of lists.
KeyPath = tuple[str | int, ...]

_STANDARD_TAGS = "tag:yaml.org,2002:"
_VAULT_HEADER = "$ANSIBLE_VAULT;"
#: libyaml's parser where PyYAML was built with it: the same nodes, ten times sooner.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Position(NamedTuple):
    """A place in a file; ``line`` counts from 1, and 0 means the file as a whole."""

    file: Path
    line: int = 0


@dataclass(frozen=True)
class Problem:
    """Something wrong at one place, and where that is in the document's own terms."""

    position: Position
    path: KeyPath
    message: str


@dataclass(frozen=True)
class Tagged:
    """A value with a tag of its own, such as Ansible's ``!vault``, left unread."""

    tag: str


@dataclass(frozen=True)
class Document:
    """What one YAML file holds.

    ``data`` is plain Python; ``positions`` has the line of every key and list item below it.
    A file that cannot be read has ``problems`` and no data.
    """

    file: Path
    data: Any = None
    positions: dict[KeyPath, Position] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    encrypted: bool = False


def read(file: Path) -> Document:
    """Read ``file``; whatever is wrong with it ends up in the document's ``problems``.

    An Ansible vault file is not decrypted: its document is empty and says so.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return Document(file, problems=(Problem(Position(file), (), f"cannot be read: {reason}"),))
    if text.startswith(_VAULT_HEADER):
        return Document(file, encrypted=True)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        return Document(file, problems=(_syntax_problem(file, error),))
    finally:
        loader.dispose()
    builder = _Builder(file)
    builder.positions[()] = Position(file)
    data = None if node is None else builder.build(node, ())
    return Document(file, data, builder.positions, tuple(builder.problems))


def spell(path: KeyPath) -> str:
    """Write a path as people write it: ``worker_nodes[1].concurrency``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def _syntax_problem(file: Path, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    context = getattr(error, "context", None)
    hint = "; indent with spaces" if "\\t" in reason else ""
    message = f"not valid YAML: {reason}{f' ({context})' if context else ''}{hint}"
    return Problem(Position(file, mark.line + 1 if mark else 0), (), message)


class _Builder:
    """Turns PyYAML's nodes into plain Python, noting where each came from."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.positions: dict[KeyPath, Position] = {}
        self.problems: list[Problem] = []
        self._scalars = yaml.constructor.SafeConstructor()
        self._open: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.positions.setdefault(path, self._position(node))
        if any(node is parent for parent in self._open):
            self._complain(node, path, "refers to itself")
            return None
        self._open.append(node)
        try:
            return self._value(node, path)
        finally:
            self._open.pop()

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if not node.tag.startswith(_STANDARD_TAGS):
            return Tagged(node.tag)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:  # such as the date 2025-02-30
            self._complain(node, path, f"cannot be read as {node.tag.removeprefix(_STANDARD_TAGS)}: {error}")
            return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self._find_duplicates(node, path)
        result: dict[str, Any] = {}
        try:
            self._scalars.flatten_mapping(node)  # resolves `<<: *anchor`; own keys come after merged ones
        except yaml.YAMLError as error:
            self._complain(node, path, f"cannot be merged: {getattr(error, 'problem', error)}")
            return result
        for key, key_node, value_node in self._entries(node, path):
            self.positions[*path, key] = self._position(key_node)
            result[key] = self.build(value_node, (*path, key))
        return result

    def _entries(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag == f"{_STANDARD_TAGS}str":
                yield key_node.value, key_node, value_node
            else:
                written = key_node.value if isinstance(key_node, yaml.ScalarNode) else "this"
                self._complain(key_node, path, f"the key {written} is not text; put it in quotes")

    def _find_duplicates(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in first:
                self._complain(key_node, (*path, key), f"is there twice; the first is on line {first[key]}")
            first.setdefault(key, line)

    def _complain(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self._position(node), path, message))

    def _position(self, node: yaml.Node) -> Position:
        return Position(self.file, node.start_mark.line + 1)
