"""Importing this runs the script in the checkout's own environment, whatever Python it was started with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_VENV = (Path(__file__).resolve().parent.parent / ".venv").resolve()

if Path(sys.prefix).resolve() != _VENV:
    if not (_VENV / "bin" / "python").exists():
        sys.exit("error: this checkout has no environment yet\nnext:  make cluster-up")
    os.execv(_VENV / "bin" / "python", [str(_VENV / "bin" / "python"), *sys.argv])  # noqa: S606 - becomes it
