"""nginx's configuration in front of Flower, rendered as Ansible renders it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from tornado.template import Template

ROLE = Path(__file__).parents[3] / "ansible" / "roles" / "proxy"
VIEWER = {"port": 5555, "read_only": True}
ADMIN = {"port": 5556, "url_prefix": "admin"}


def render(**variables: Any) -> str:
    loader = DataLoader()
    given: dict[str, Any] = {
        "proxy_home": "/srv/demo",
        "proxy_address": "192.0.2.7",
        "proxy_port": 443,
        "proxy_backends": [VIEWER, ADMIN],
    }
    for name in ("defaults", "vars"):
        file = ROLE / name / "main.yml"
        given = {**loader.load_from_file(str(file), trusted_as_template=True), **given}
    text = trust_as_template((ROLE / "templates" / "nginx.conf.j2").read_text(encoding="utf-8"))
    templar = Templar(loader=loader, variables={**given, **variables})
    rendered: str = templar.template(text, escape_backslashes=False)
    return rendered


def block(text: str, head: str) -> str:
    """Return what is in the block that begins with `head`; it holds no other but a last one."""
    found = re.search(re.escape(head) + r" \{\n(.*?)\n        \}", text, re.DOTALL)
    assert found, f"no {head}"
    return found[1]


@pytest.mark.parametrize("prefix", ["/", "/admin/"])
@pytest.mark.parametrize("page", ["metrics", "healthcheck"])
def test_metrics_are_for_nobody_on_the_network(prefix: str, page: str) -> None:
    assert block(render(), f"location = {prefix}{page}").strip() == "return 403;"


def test_no_action_gets_through_to_the_viewer() -> None:
    text = render()
    assert "limit_except GET" in block(text, "location /api/")
    assert "location /admin/api/" not in text


def test_each_flower_has_its_path() -> None:
    text = render()
    assert "proxy_pass http://127.0.0.1:5555;" in block(text, "location /")
    assert "proxy_pass http://127.0.0.1:5556;" in block(text, "location /admin/")


def test_no_location_loses_the_security_headers() -> None:
    # nginx drops those of the server where a location adds one of its own.
    text = render(proxy_brokers=["192.0.2.1:15671"], proxy_broker_name="brokers.test.internal")
    locations = re.findall(r"location [^{]*\{.*?\n        \}", text, re.DOTALL)
    assert len(locations) > 8
    assert not [location for location in locations if "add_header" in location]


def test_flower_asks_any_broker_for_its_queues_and_for_nothing_else() -> None:
    text = render(
        proxy_brokers=["192.0.2.1:15671", "192.0.2.2:15671"], proxy_broker_name="brokers.test.internal"
    )
    _, _, server = text.partition("listen 127.0.0.1:443;")
    location = block(server, "location = /api/queues/")
    assert "proxy_ssl_verify on;" in location
    assert "proxy_ssl_name brokers.test.internal;" in location
    assert block(server, "location /").strip() == "return 404;"
    assert re.findall(r"server (\S+) max_fails", text) == ["192.0.2.1:15671", "192.0.2.2:15671"]
    assert "listen 127.0.0.1" not in render()


def test_an_ipv6_address_is_put_in_brackets() -> None:
    assert "listen [2001:db8::7]:443 ssl;" in render(proxy_address="2001:db8::7")


def test_the_one_script_that_flower_writes_into_a_page_is_allowed_by_its_hash() -> None:
    page = resources.files("flower") / "templates" / "workers.html"
    found = re.search(r"<script type=.*?</script>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found, "Flower's page has no script any more"
    # By the name's ending tornado knows to take blanks together, as it does for Flower.
    written = Template(found[0], name=page.name).generate(autorefresh=1).decode()
    script = written.removeprefix('<script type="text/javascript">').removesuffix("</script>")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in render()
