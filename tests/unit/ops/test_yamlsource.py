"""YAML read with the place of every key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clusterkit.ops.yamlsource import Position, Tagged, read, spell

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.yml"


def test_every_key_and_item_has_its_line(file: Path) -> None:
    file.write_text("# note\na:\n  b: 1\n  c:\n    - x\n    - {d: 2,\n       e: 3}\n")
    document = read(file)
    assert document.data == {"a": {"b": 1, "c": ["x", {"d": 2, "e": 3}]}}
    lines = {path: position.line for path, position in document.positions.items()}
    assert lines == {
        (): 0,
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 4,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("a", "c", 1, "d"): 6,
        ("a", "c", 1, "e"): 7,
    }


def test_a_merged_key_has_the_line_it_was_written_on(file: Path) -> None:
    file.write_text("base: &base {a: 1, b: 2}\nmine:\n  <<: *base\n  b: 3\n")
    document = read(file)
    assert document.data["mine"] == {"a": 1, "b": 3}
    assert document.positions["mine", "a"].line == 1
    assert document.positions["mine", "b"].line == 4
    assert not document.problems


def test_values_have_the_types_ansible_gives_them(file: Path) -> None:
    file.write_text("a: yes\nb: 0x10\nc: '5'\nd: 1.5\ne: ~\nf: !vault |\n  secret\n")
    assert read(file).data == {"a": True, "b": 16, "c": "5", "d": 1.5, "e": None, "f": Tagged("!vault")}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "a: 1\nb: [1\n",
            3,
            "not valid YAML: did not find expected ',' or ']' (while parsing a flow sequence)",
        ),
        ("a: 1\na: 2\n", 2, "is there twice; the first is on line 1"),
        ("a: *nowhere\n", 1, "not valid YAML: found undefined alias"),
        ("a: &a [*a]\n", 1, "refers to itself"),
        ("a: {<<: 5}\n", 1, "cannot be merged: expected a mapping or list of mappings for merging"),
        ("5: x\n", 1, "the key 5 is not text; put it in quotes"),
        ("[a]: x\n", 1, "the key this is not text; put it in quotes"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML: but found another document"),
    ],
)
def test_a_mistake_is_told_with_its_line(file: Path, text: str, line: int, message: str) -> None:
    file.write_text(text)
    (problem,) = read(file).problems
    assert problem.position == Position(file, line)
    assert problem.message.startswith(message)


def test_a_file_that_cannot_be_read_is_a_problem_too(file: Path) -> None:
    assert [problem.message for problem in read(file).problems] == [
        "cannot be read: No such file or directory"
    ]
    file.write_bytes(b"a: \xff\n")
    assert [problem.message for problem in read(file).problems] == ["cannot be read: it is not UTF-8 text"]
    file.write_bytes(b"a: \x00\n")
    assert read(file).problems[0].message.startswith("not valid YAML: ")


def test_an_encrypted_file_says_so(file: Path) -> None:
    file.write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    document = read(file)
    assert document.encrypted
    assert document.data is None


def test_a_path_is_written_as_people_write_it() -> None:
    assert spell(("worker_nodes", 1, "queues", 0)) == "worker_nodes[1].queues[0]"
    assert spell(()) == ""
