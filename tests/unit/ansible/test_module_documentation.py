"""The modules' documentation describes exactly the arguments that they take."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

ANSIBLE = Path(__file__).parents[3] / "ansible"
MODULES = sorted(path.stem for path in (ANSIBLE / "library").glob("*.py"))


class _Seen(Exception):  # noqa: N818 - it is a way out, no error
    """Carries a module's argument specification out of it."""


def specification(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    module = importlib.import_module(name)

    def stand_in(argument_spec: dict[str, Any], **_: Any) -> None:
        raise _Seen(argument_spec)

    monkeypatch.setattr(module, "AnsibleModule", stand_in)
    with pytest.raises(_Seen) as seen:
        module.main()
    spec: dict[str, Any] = seen.value.args[0]
    return spec


def compare(documented: dict[str, Any], taken: dict[str, Any], where: str) -> None:
    assert documented.keys() == taken.keys(), where
    for name, option in taken.items():
        text = documented[name]
        assert text.get("description"), f"{where}.{name}"
        for key in ("type", "elements", "default", "choices"):
            assert text.get(key) == option.get(key), f"{where}.{name}: {key}"
        assert text.get("required", False) == option.get("required", False), f"{where}.{name}: required"
        compare(text.get("suboptions", {}), option.get("options", {}), f"{where}.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_the_documentation_is_what_the_module_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    documentation = yaml.safe_load(module.DOCUMENTATION)
    assert documentation["module"] == name
    compare(documentation["options"], specification(name, monkeypatch), name)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_and_the_result_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    for example in yaml.safe_load(module.EXAMPLES):
        assert set(example) == {"name", name}
        unknown = set(example[name]) - set(yaml.safe_load(module.DOCUMENTATION)["options"])
        assert not unknown
    for value in yaml.safe_load(module.RETURN).values():
        assert {"description", "type", "returned"} <= set(value)


@pytest.mark.parametrize("name", MODULES)
def test_a_password_is_never_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for option, described in specification(name, monkeypatch).items():
        if "password" in option:
            assert described.get("no_log") is True
