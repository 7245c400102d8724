"""Every role describes its options, and its defaults are the ones it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ANSIBLE = Path(__file__).parents[3] / "ansible"
ROLES = sorted(path for path in (ANSIBLE / "roles").iterdir() if path.is_dir())
NAMES = [role.name for role in ROLES]


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}


def entry_points(role: Path) -> dict[str, dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    return specs


def options(role: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Return entry point, name and description of every option of a role, those of mappings too."""

    def inner(entry: str, described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
        found = []
        for name, option in described.items():
            found.append((entry, name, option))
            found += inner(f"{entry}.{name}", option.get("options", {}))
        return found

    return [
        option
        for entry, spec in entry_points(role).items()
        for option in inner(entry, spec.get("options", {}))
    ]


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_every_option_has_a_type_and_a_description(role: Path) -> None:
    for entry, name, option in options(role):
        assert option.get("type"), f"{role.name}: {entry}: {name} has no type"
        assert option.get("description"), f"{role.name}: {entry}: {name} has no description"
        if option["type"] == "list":
            assert option.get("elements"), f"{role.name}: {entry}: {name} does not say what it is a list of"


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_every_entry_point_has_tasks_and_a_short_description(role: Path) -> None:
    for entry, spec in entry_points(role).items():
        assert (role / "tasks" / f"{entry}.yml").exists(), f"{role.name}: {entry} has no tasks"
        assert spec.get("short_description"), f"{role.name}: {entry} has no short description"


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_the_defaults_are_those_of_the_specification(role: Path) -> None:
    described = {
        name: option["default"]
        for spec in entry_points(role).values()
        for name, option in spec.get("options", {}).items()
        if "default" in option
    }
    assert load(role / "defaults" / "main.yml") == described


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_an_option_is_the_same_at_every_entry_point(role: Path) -> None:
    seen: dict[str, Any] = {}
    for spec in entry_points(role).values():
        for name, option in spec.get("options", {}).items():
            if "default" in option:
                assert seen.setdefault(name, option["default"]) == option["default"], name


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_a_required_option_has_no_default(role: Path) -> None:
    for entry, name, option in options(role):
        assert not (option.get("required") and "default" in option), f"{role.name}: {entry}: {name}"


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_public_names_begin_with_the_role_and_internal_ones_with_two_underscores(role: Path) -> None:
    public = {name for spec in entry_points(role).values() for name in spec.get("options", {})}
    assert all(name.startswith(f"{role.name}_") for name in public)
    assert all(name.startswith(f"__{role.name}_") for name in load(role / "vars" / "main.yml"))


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_a_password_is_never_shown(role: Path) -> None:
    for entry, name, option in options(role):
        if name.endswith(("_password", "_cookie")):
            assert option.get("no_log") is True, f"{role.name}: {entry}: {name}"


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_a_file_of_tasks_is_short(role: Path) -> None:
    for path in (role / "tasks").glob("*.yml"):
        count = len(path.read_text(encoding="utf-8").splitlines())
        assert count <= 85, f"{path.relative_to(ANSIBLE)} has {count} lines"
