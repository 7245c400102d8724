"""The generated documents are what the code says now."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusterkit.ops.reference import ROOT, documents


@pytest.mark.parametrize("path", documents(), ids=str)
def test_a_reference_document_is_up_to_date(path: Path) -> None:
    assert (ROOT / path).read_text() == documents()[path], "run make reference"
