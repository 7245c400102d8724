"""A broker node goes back to the others when it is on the smaller side of a partition that is left."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[3] / "ansible" / "roles" / "rabbitmq" / "files" / "heal.py"


@pytest.fixture(scope="module")
def heal() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("heal", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nodes(running: str, others: str) -> list[dict[str, Any]]:
    return [{"name": name, "running": name in running} for name in running + others]


@pytest.mark.parametrize(
    ("own", "running", "others", "expected"),
    [
        ("c", "c", "ab", "ab"),  # alone of three
        ("a", "ab", "c", ""),  # of the larger side
        ("a", "abc", "", ""),
        ("b", "b", "a", "a"),  # of two halves the one without the first name
        ("a", "a", "b", ""),
        ("c", "cd", "ab", "ab"),
        ("e", "de", "abc", "abc"),
        ("c", "ab", "c", ""),  # it does not see itself: it stops
    ],
)
def test_who_goes_back(heal: ModuleType, own: str, running: str, others: str, expected: str) -> None:
    assert heal.lost(own, nodes(running, others)) == set(expected)


def test_a_node_that_does_not_answer_has_lost_nobody(heal: ModuleType) -> None:
    environment = {"URL": "http://127.0.0.1:1", "USER": "monitor", "PASSWORD": "x", "CA": ""}
    assert heal.nodes_of(environment) == []
    assert heal.lost("a", []) == set()
