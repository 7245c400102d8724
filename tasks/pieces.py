"""Cuts files into pieces of bounded size for word counting: the part that runs where the files are."""

from __future__ import annotations

import contextlib
import itertools
import string
from typing import TYPE_CHECKING, BinaryIO

from clusterkit.runtime.errors import BadInputError
from tasks.text import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# A count takes at most 2.5 times the text it was counted in ("abc" -> "abc": 1, ), and a chord
# sends all of them to its reducer in one message, compressed: 1 MiB of text keeps that under 1 MB.
PIECES_PER_CHORD = 8
# 256 chords; more is better done in several runs, or with the files where the workers are.
MAX_BYTES = 256 * 1024 * 1024
LETTERS = string.ascii_letters.encode()


def find_files(paths: Iterable[Path]) -> list[Path]:
    """List the files among ``paths`` and below its folders, sorted; links to files count, to folders not.

    Raises ``BadInputError`` when a path is missing, a folder cannot be listed, or all are over 256 MiB.
    """
    files: list[Path] = []
    with _readable():
        for path in paths:
            path.stat()
            below = sorted(found for found in path.rglob("*") if found.is_file())
            files += below if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        message = f"{size} bytes in {len(files)} files: at most {MAX_BYTES} at once, name fewer"
        raise BadInputError(message)
    return files


def bundles(files: Iterable[Path]) -> Iterator[list[str]]:
    """Read files one after the other and yield the pieces of one chord at a time."""
    pieces = chunks(_opened(files))
    while bundle := list(itertools.islice(pieces, PIECES_PER_CHORD)):
        yield bundle


def chunks(files: Iterable[BinaryIO], size: int = CHUNK_BYTES) -> Iterator[str]:
    """Cut files, one after the other, into pieces of at most ``size`` bytes that split no word.

    Small files share a piece; the end of a file ends a word. Bytes that are not UTF-8 become
    U+FFFD, which like every other character outside A to Z stands between words.

    Raises ``BadInputError`` at a word longer than ``size``.
    """
    rest = b""
    for file in files:
        while block := _read(file, size - len(rest)):
            rest += block
            if len(rest) == size:
                cut = _last_boundary(rest)
                yield rest[:cut].decode("utf-8", "replace")
                rest = rest[cut:]
        # One byte more fits: what is left of a full piece is shorter than it.
        rest += b"\n" if rest else b""
        if len(rest) == size:
            yield rest.decode("utf-8", "replace")
            rest = b""
    if rest:
        yield rest.decode("utf-8", "replace")


def _opened(files: Iterable[Path]) -> Iterator[BinaryIO]:
    for path in files:
        with _readable():
            file = path.open("rb")
        with file:
            yield file


def _read(file: BinaryIO, size: int) -> bytes:
    with _readable():
        return file.read(size)


def _last_boundary(piece: bytes) -> int:
    """Find where ``piece`` can be cut: behind its last byte that is no letter."""
    if cut := len(piece.rstrip(LETTERS)):
        return cut
    message = f"a word is longer than {len(piece)} bytes: it begins {piece[:20].decode()}"
    raise BadInputError(message)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInputError(str(error)) from error
