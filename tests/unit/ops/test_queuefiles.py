"""Files of messages: exact, checked line by line, and of use when they break off."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from clusterkit.ops import queuefiles
from clusterkit.ops.messaging import Message
from clusterkit.runtime.errors import BadInputError

MESSAGE = Message(
    b"\x00\xffbody",
    {"content_type": "application/json", "priority": 0, "timestamp": 12},
    {
        "x-death": [{"time": datetime(2026, 1, 2), "count": 1}],  # noqa: DTZ001 - as py-amqp gives it
        "raw": b"\xff",
        "table": {"$bytes": "no such thing", "plain": None},
        "amount": Decimal("1.50"),
        "list": [1, 2.5, True, "text"],
    },
    "celery",
    "cpu",
)


def write(path: Path, *messages: Message) -> Path:
    with queuefiles.Writer(path, "test", "cpu") as file:
        for message in messages:
            file.add(message)
    return path


def test_a_message_comes_back_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "dump", MESSAGE, MESSAGE)
    assert list(queuefiles.messages(path)) == [MESSAGE, MESSAGE]
    assert queuefiles.check(path) == queuefiles.Summary("test", "cpu", 2, complete=True)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = write(tmp_path / "dump", MESSAGE)
    with pytest.raises(BadInputError, match="is there already"):
        write(path)
    assert queuefiles.check(path).messages == 1


def test_a_file_that_breaks_off_has_the_messages_written_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "dump", MESSAGE, MESSAGE)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    assert queuefiles.check(path) == queuefiles.Summary("test", "cpu", 1, complete=False)
    assert list(queuefiles.messages(path)) == [MESSAGE]


@pytest.mark.parametrize("line", [0, 1, 2, 3])
def test_a_changed_byte_anywhere_is_noticed(line: int, tmp_path: Path) -> None:
    path = write(tmp_path / "dump", MESSAGE, MESSAGE)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"a", b"b", 1)
    path.write_bytes(b"".join(lines))
    with pytest.raises(BadInputError, match=f"line {line + 1}"):
        queuefiles.check(path)


def test_a_missing_line_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "dump", MESSAGE, MESSAGE)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1], lines[3]]))
    with pytest.raises(BadInputError, match="should have 2 messages and has 1"):
        queuefiles.check(path)


@pytest.mark.parametrize("content", [b"", b"text\n", b"{}\n", b"[1]\n", b"\xff\xfe\n"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"no file of messages|no line of a file"):
        queuefiles.check(path)


#: Writes messages to a file that can take 4 kB only, as a full disk.
_FULL = """
import resource, sys
from pathlib import Path
from clusterkit.ops.messaging import Message
from clusterkit.ops.queuefiles import Writer
from clusterkit.runtime.errors import BadInputError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with Writer(Path(sys.argv[1]), "test", "cpu") as file:
        for _ in range(int(sys.argv[2])):
            file.add(Message(bytes(1000), {}, {}))
except BadInputError as error:
    print(error)
"""


@pytest.mark.parametrize("messages", [3, 100])
def test_a_full_disk_is_told_as_such_in_the_middle_and_at_the_end(messages: int, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(path), str(messages)], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{path} cannot be written: File too large\n", done.stderr
    assert queuefiles.check(path).messages == 2
    assert not queuefiles.check(path).complete


def test_what_the_broker_adds_is_not_published_again() -> None:
    message = Message(
        b"",
        {"user_id": "worker", "priority": 1},
        {"x-delivery-count": 3, "x-death": [{}], "x-first-death-queue": "cpu", "mine": 1},
    )
    assert message.without_deaths().headers == {"x-delivery-count": 3, "mine": 1}
    assert message.to_publish().properties == {
        "application_headers": {"x-death": [{}], "x-first-death-queue": "cpu", "mine": 1},
        "priority": 1,
    }
