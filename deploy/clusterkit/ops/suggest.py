"""What somebody wrote, and what they probably meant."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from clusterkit.ops.yamlsource import Tagged

if TYPE_CHECKING:
    from collections.abc import Iterable


def did_you_mean(word: str, valid: Iterable[str], *, otherwise: str = "Valid") -> str:
    """Return ``Did you mean 'x'?`` for the nearest of ``valid``, or all of them after ``otherwise``."""
    choices = list(valid)
    near = difflib.get_close_matches(word.lower(), choices, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"{otherwise}: {', '.join(choices)}"


def say(value: Any) -> str:
    """Return a YAML value in words: ``the text '8'``."""
    match value:
        case None:
            said = "empty"
        case bool():
            said = "true" if value else "false"
        case int() | float():
            said = f"the number {value}"
        case str():
            said = f"the text {value!r}"
        case dict():
            said = "a mapping"
        case list() | tuple():
            said = "a list"
        case Tagged():
            said = f"a value tagged {value.tag} (it is not read here)"
        case _:
            said = f"a {type(value).__name__}"
    return said
