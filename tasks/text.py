r"""Word count as map and reduce: pieces of text are counted apart, then the counts are added up.

A word is a run of the letters A to Z, counted in lower case: what
``tr -cs 'A-Za-z' '\n' | tr A-Z a-z | sort | uniq -c`` counts, without its empty line.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated

from pydantic import Field

from tasks.app import app
from tasks.checks import checked

# One byte of text is at most six bytes of JSON (\ufffd), so a piece stays under 0.8 MB as a message.
CHUNK_BYTES = 128 * 1024
MAX_CHUNKS = 2048

WORD = re.compile(r"[A-Za-z]+")

Counts = dict[str, Annotated[int, Field(ge=1)]]


@app.task(compression="zlib")
@checked
def count_words(text: Annotated[str, Field(max_length=CHUNK_BYTES)]) -> dict[str, int]:
    """Count the words of one piece of text of at most 131 072 characters."""
    # Found first, lowered then: lowering the Kelvin sign, say, would make a letter k of it.
    return dict(Counter(word.lower() for word in WORD.findall(text)))


@app.task(compression="zlib")
@checked
def merge_counts(
    counts: Annotated[list[Counts], Field(max_length=MAX_CHUNKS)],
    top: Annotated[int, Field(ge=1)] | None = None,
) -> dict[str, int]:
    """Add up counts, most frequent word first (then by alphabet); ``top`` keeps that many words."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))[:top])
