"""A load goes on only where the same load was, alone, and with a file that has its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusterkit.ops import queuedump, queuefiles
from clusterkit.ops.messaging import Message
from clusterkit.ops.queuedump import _Progress
from clusterkit.runtime.errors import BadInputError, NoClusterError

from .conftest import Inventory


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dump"
    with queuefiles.Writer(path, "lab", "cpu") as writer:
        writer.add(Message(b"", {}, {}))
    return path


def break_off(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def test_a_load_goes_on_where_it_was(file: Path) -> None:
    with _Progress(file, "lab", "cpu") as progress:
        assert progress.confirmed == 0
        progress.keep(7)
    with _Progress(file, "lab", "cpu") as progress:
        assert progress.confirmed == 7


@pytest.mark.parametrize(("cluster", "queue"), [("prod", "cpu"), ("lab", "io")])
def test_a_load_into_another_cluster_or_queue_skips_nothing(cluster: str, queue: str, file: Path) -> None:
    with _Progress(file, "lab", "cpu") as progress:
        progress.keep(7)
    with pytest.raises(BadInputError, match="another cluster or queue"), _Progress(file, cluster, queue):
        pass


def test_a_file_is_not_loaded_twice_at_once(file: Path) -> None:
    with (
        _Progress(file, "lab", "cpu"),
        pytest.raises(BadInputError, match=f"another command is loading {file}$"),
        _Progress(file, "lab", "cpu"),
    ):
        pass
    with _Progress(file, "lab", "cpu"):
        pass


def test_a_file_that_breaks_off_is_refused_before_the_broker_is_asked(
    file: Path, inventory: Inventory
) -> None:
    break_off(file)
    cluster = inventory.load()
    with pytest.raises(BadInputError, match=r"breaks off.* in queue cpu of cluster 'lab', too"):
        queuedump.load(cluster, file, "io", print)
    with pytest.raises(NoClusterError):
        queuedump.load(cluster, file, "io", print, force=True)
