"""Calls the kit's Ansible modules as Ansible does, in this process."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

ANSIBLE = Path(__file__).parents[3] / "ansible"

# As Ansible finds them: the modules by themselves, what they share as a part of ansible.module_utils.
sys.path.insert(0, str(ANSIBLE / "library"))
ansible.module_utils.__path__.append(str(ANSIBLE / "plugins" / "module_utils"))

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call() -> Call:
    """Return a function that runs a module with arguments and returns its result."""
    from ansible.module_utils.testing import patch_module_args  # noqa: PLC0415 - after the path was extended

    def run(name: str, *, check_mode: bool = False, **arguments: Any) -> dict[str, Any]:
        module = importlib.import_module(name)
        output = io.StringIO()
        arguments["_ansible_check_mode"] = check_mode
        with (
            patch_module_args(arguments),
            contextlib.redirect_stdout(output),
            contextlib.suppress(SystemExit),
        ):
            module.main()
        result: dict[str, Any] = json.loads(output.getvalue())
        result.setdefault("failed", False)
        return result

    return run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the home of a cluster that does not exist yet, in a path short enough for a socket."""
    return tmp_path / "home"


@pytest.fixture
def supervised(home: Path, call: Call) -> Iterator[Call]:
    """Return a function that applies a set of services in `home`; everything is stopped at the end."""

    def apply(services: list[dict[str, Any]], set_name: str = "things", **more: Any) -> dict[str, Any]:
        place = more.pop("home", str(home))
        return call(
            "supervisor_services",
            home=place,
            set=set_name,
            services=services,
            supervisor_bin=str(Path(sys.executable).parent),
            log_directory=f"{place}/log",
            **more,
        )

    yield apply
    call("supervisor_control", home=str(home), state="stopped")
    left = call("leftover_processes", home=str(home), timeout=2)
    assert left["processes"] == []
