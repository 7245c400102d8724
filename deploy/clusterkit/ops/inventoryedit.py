"""Changes one value of an inventory in place: comments, order and style of the file stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from clusterkit.ops import drained, inventory
from clusterkit.ops.errors import InventoryError
from clusterkit.runtime.errors import ClusterkitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clusterkit.ops.model import Cluster


def set_of_node(cluster: Cluster, node: str, key: str, value: int) -> Cluster:
    """Write the ``key`` of the worker node ``node`` (`concurrency`, ...); return the cluster as it is then.

    Drained hosts stay without worker nodes in it.

    Raises:
        InventoryError: the place could not be found, or what came of it is not right; the file is as it was.
    """
    for file in reversed(_files(cluster)):  # the last file that has a key is the one that counts
        text = file.read_text(encoding="utf-8")
        entry = _entry(text, node)
        if entry is None:
            continue
        file.write_text(_changed(text, entry, key, value), encoding="utf-8")
        try:
            return _reloaded(cluster, node, key, value)
        except ClusterkitError as error:
            file.write_text(text, encoding="utf-8")
            raise InventoryError(
                f"{file}: {key} of worker node {node!r} cannot be changed by this command: {error}",
                next_step=f"write {key}: {value} there yourself, then make cluster-up",
            ) from error
    raise InventoryError(
        f"{cluster.directory}: worker node {node!r} is not found below group_vars",
        next_step=f"write {key}: {value} yourself, then make cluster-up",
    )


def _files(cluster: Cluster) -> list[Path]:
    folder = cluster.directory / "group_vars"
    found = [path for path in (folder / "all", *folder.glob("all.*")) if path.exists()]
    return sorted(file for path in found for file in (path.iterdir() if path.is_dir() else [path]))


def _entry(text: str, node: str) -> CommentedMap | None:
    """Return the node's entry in ``worker_nodes``, which knows where in ``text`` it stands."""
    document: Any = YAML(typ="rt").load(text)
    nodes = document.get("worker_nodes") if isinstance(document, CommentedMap) else None
    entries: Iterator[Any] = (entry for entry in nodes or () if isinstance(entry, CommentedMap))
    return next((entry for entry in entries if entry.get("name") == node), None)


def _changed(text: str, entry: CommentedMap, key: str, value: int) -> str:
    lines = text.splitlines(keepends=True)
    places = entry.lc.data
    if key in places:
        _, _, row, column = places[key]
        line = lines[row]
        length = len(str(entry[key]))
        lines[row] = f"{line[:column]}{value}{line[column + length :]}"
        return "".join(lines)
    row, column, _, _ = places["name"]
    line = lines[row]
    between = ", " if entry.fa.flow_style() else f"\n{' ' * column}"
    lines[row] = f"{line[:column]}{key}: {value}{between}{line[column:]}"
    return "".join(lines)


def _reloaded(cluster: Cluster, node: str, key: str, value: int) -> Cluster:
    changed = inventory.load(cluster.directory, cluster.root)
    has = next(getattr(one, key) for one in changed.worker_nodes if one.name == node)
    if has != value:
        raise InventoryError(f"it is {has} afterwards, not {value}")
    return drained.without(changed)
