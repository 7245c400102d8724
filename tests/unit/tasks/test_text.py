"""Words are counted as tr, sort and uniq count them, however the text is cut."""

from __future__ import annotations

import io
import json
import random
import string
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

from clusterkit.runtime.errors import BadInputError
from tasks import pieces
from tasks.pieces import bundles, chunks, find_files
from tasks.text import CHUNK_BYTES, count_words, merge_counts

if TYPE_CHECKING:
    from pathlib import Path

PIPELINE = r"tr -cs 'A-Za-z' '\n' | tr A-Z a-z | sort | uniq -c"
TEXTS = [
    b"The quick brown fox; the QUICK dog.\nDon't re-do it 3x!\n",
    "Ærøskøbing, naïve café, \u212aelvin, \u017ftraße\n".encode(),
    bytes(range(256)) * 3,
    b"",
    b"...\n",
    b"one",
]


def by_pipeline(text: bytes) -> dict[str, int]:
    done = subprocess.run(
        ["sh", "-c", PIPELINE],
        input=text,
        capture_output=True,
        check=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    return {row[1]: int(row[0]) for row in rows if len(row) == 2}


def by_tasks(text: bytes, size: int) -> dict[str, int]:
    counts = [count_words(piece) for piece in chunks([io.BytesIO(text)], size)]
    total: dict[str, int] = merge_counts(counts)
    return total


@pytest.mark.parametrize("text", TEXTS)
def test_counts_equal_those_of_sort_and_uniq(text: bytes) -> None:
    assert by_tasks(text, CHUNK_BYTES) == by_pipeline(text)


@pytest.mark.parametrize("size", [16, 17, 31, 64, 1000])
def test_counts_are_the_same_wherever_the_text_is_cut(size: int) -> None:
    letters = random.Random(5)  # noqa: S311
    text = "".join(letters.choice("ab,\nCé ") for _ in range(3000)).encode()
    assert by_tasks(text, size) == by_pipeline(text)


def test_counts_are_added_and_the_most_frequent_come_first() -> None:
    merged = merge_counts([{"b": 1, "a": 1}, {"c": 5, "b": 1}, {}])
    assert list(merged.items()) == [("c", 5), ("b", 2), ("a", 1)]
    assert list(merge_counts([{"b": 1, "a": 1, "c": 3}], 2).items()) == [("c", 3), ("a", 1)]
    assert merge_counts([]) == {}


def test_no_piece_is_larger_than_its_size_and_small_files_share_one() -> None:
    files = [io.BytesIO(b"word " * count) for count in (1, 2, 30, 0, 4)]
    cut = list(chunks(files, 64))
    assert all(len(piece) <= 64 for piece in cut)
    assert len(cut) < len(files)
    assert sum(count_words(piece)["word"] for piece in cut) == 37


def test_the_end_of_a_file_ends_a_word() -> None:
    assert merge_counts([count_words(p) for p in chunks([io.BytesIO(b"up"), io.BytesIO(b"on")])]) == {
        "on": 1,
        "up": 1,
    }


@pytest.mark.parametrize("first", range(10, 20))
def test_a_file_that_fills_a_piece_does_not_hide_the_next(first: int) -> None:
    files = [io.BytesIO(b"x " * (first // 2) + b"y" * (first % 2)), io.BytesIO(b"z")]
    assert merge_counts([count_words(piece) for piece in chunks(files, 16)])["z"] == 1


def test_a_word_longer_than_a_piece_is_refused() -> None:
    with pytest.raises(BadInputError, match="a word is longer than 64 bytes: it begins aaaa"):
        list(chunks([io.BytesIO(b"a" * 65)], 64))


def test_a_text_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="count_words: text: "):
        count_words("a" * (CHUNK_BYTES + 1))


@pytest.mark.parametrize("count", [0, -1, "3", None])
def test_a_count_that_is_none_is_refused(count: object) -> None:
    with pytest.raises(ValueError, match=r"merge_counts: counts\.0\.word: "):
        merge_counts([{"word": count}])


def test_the_worst_text_makes_no_message_of_more_than_a_megabyte() -> None:
    letters = random.Random(1)  # noqa: S311
    word = "".join
    text = " ".join(
        word(letters.choices(string.ascii_lowercase, k=4)) for _ in range(pieces.MAX_BYTES // 5 // 256)
    )
    parts = list(chunks([io.BytesIO(text.encode())]))[: pieces.PIECES_PER_CHORD]
    assert len(parts) == pieces.PIECES_PER_CHORD
    sent_to_the_reducer = json.dumps([count_words(part) for part in parts]).encode()
    assert len(zlib.compress(sent_to_the_reducer)) < 1_000_000
    undecodable = next(chunks([io.BytesIO(b"\xff" * CHUNK_BYTES)]))
    assert len(json.dumps(undecodable)) < 1_000_000


def test_folders_are_searched_and_links_to_files_counted(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to("a.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to("nowhere")
    assert [str(file.relative_to(tmp_path)) for file in find_files([tmp_path])] == [
        "a.txt",
        "deep/er/b.txt",
        "link",
    ]
    assert find_files([tmp_path / "a.txt"]) == [tmp_path / "a.txt"]


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="missing"):
        find_files([tmp_path / "missing"])


def test_too_much_text_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(pieces.MAX_BYTES + 1)
    with pytest.raises(BadInputError, match="at most 268435456 at once"):
        find_files([tmp_path])


def test_a_large_file_becomes_chords_of_bounded_size(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("some words\n" * 200_000)
    made = list(bundles([file]))
    assert [len(bundle) for bundle in made] == [8, 8, 1]
    assert all(len(piece) <= CHUNK_BYTES for bundle in made for piece in bundle)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="gone"):
        list(bundles([tmp_path / "gone"]))
