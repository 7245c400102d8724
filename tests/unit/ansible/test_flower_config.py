"""Flower's options, rendered as Ansible renders them and read as Flower reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[3] / "ansible" / "roles" / "flower"


def options(**instance: Any) -> dict[str, Any]:
    """Return what Flower's file of options sets for an instance."""
    loader = DataLoader()
    variables: dict[str, Any] = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    variables |= {
        "__flower_state": "/srv/demo/flower/state",
        "flower_broker_api": "https://flower:x@h7.lab.internal:443/broker-api/",
        "instance": {"name": "flower-viewer", "port": 5555, "users": {"viewer": "xyzzy"}, **instance},
    }
    text = trust_as_template((ROLE / "templates" / "flower.py.j2").read_text(encoding="utf-8"))
    rendered = Templar(loader=loader, variables=variables).template(text, escape_backslashes=False)
    found: dict[str, Any] = {}
    exec(compile(rendered, "flower.py", "exec"), {}, found)  # noqa: S102 - as Flower does
    return found


def test_each_user_has_a_password_whatever_is_in_it() -> None:
    found = options(users={"viewer": 'a,b"c', "admin": "d:e\\f"})
    assert found["basic_auth"] == ["admin:d:e\\f", 'viewer:a,b"c']


def test_an_instance_acts_unless_it_is_to_show_only() -> None:
    assert options()["read_only"] is False
    assert options(read_only=True)["read_only"] is True


def test_only_what_is_behind_a_path_has_a_prefix() -> None:
    assert "url_prefix" not in options()
    assert options(url_prefix="admin")["url_prefix"] == "admin"


def test_two_instances_remember_in_different_files() -> None:
    assert options()["db"] == "/srv/demo/flower/state/flower-viewer"
    assert options(name="flower-admin")["db"] == "/srv/demo/flower/state/flower-admin"
