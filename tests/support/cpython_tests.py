"""CPython's own tests of concurrent.futures, from the interpreter or from the distribution."""

from __future__ import annotations

import importlib
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import test  # type: ignore[import-not-found] # mypy knows no tests


def find() -> None:
    """Let ``test`` have what the distribution installs apart, for the same Python."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for library in (sysconfig.get_path("stdlib"), f"/usr/lib/{version}"):
        if (folder := Path(library) / "test").is_dir() and str(folder) not in test.__path__:
            test.__path__.append(str(folder))


def modules() -> dict[str, ModuleType]:
    """Return what holds each of the classes needed; a package since Python 3.12, a module before.

    Raises:
        ModuleNotFoundError: the tests are not installed.
    """
    find()
    name = "test.test_concurrent_futures"
    whole = importlib.import_module(name)
    if not hasattr(whole, "__path__"):
        return dict.fromkeys(("wait", "as_completed", "executor", "shutdown", "util"), whole)
    places = {"wait": "test_wait", "as_completed": "test_as_completed", "shutdown": "test_shutdown"}
    return {
        short: importlib.import_module(f"{name}.{places.get(short, short)}")
        for short in ("wait", "as_completed", "executor", "shutdown", "util")
    }
