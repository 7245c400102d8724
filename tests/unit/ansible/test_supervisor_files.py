"""What is written for supervisor is read back by supervisor's own parser as it was meant."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.clusterkit_supervisor import (
    Layout,
    Program,
    SupervisorError,
    check_private,
    main_configuration,
    quote,
)
from supervisor.options import ServerOptions

VALUES = [
    "plain",
    "",
    "100% sure, 50%(program_name)s",
    "a,b=c",
    'has "double" ones inside',
    "it's single",
    '{"json": [1, 2]}',
    "/a/path:/another;no-blank-before#either",
    "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
    "ünï",
]


def read_back(tmp_path: Path, *programs: Program) -> dict[str, Any]:
    """Return program name -> configuration, as supervisord reads the files."""
    layout = Layout(tmp_path)
    layout.sets.mkdir(parents=True, exist_ok=True)
    layout.configuration.write_text(main_configuration(layout, str(tmp_path)), encoding="utf-8")
    layout.set_file("all").write_text("\n".join(p.section() for p in programs), encoding="utf-8")
    options = ServerOptions()
    options.realize(["-c", str(layout.configuration)])
    return {g.name: g.process_configs[0] for g in options.process_group_configs}


def program(tmp_path: Path, **more: Any) -> Program:
    return Program("a", "/bin/true", str(tmp_path), str(tmp_path / "a.log"), **more)


@pytest.mark.parametrize("value", VALUES)
def test_an_environment_value_arrives_as_it_was(tmp_path: Path, value: str) -> None:
    configuration = read_back(tmp_path, program(tmp_path, environment={"FIRST": "1", "VALUE": value}))["a"]
    assert configuration.environment == {"FIRST": "1", "VALUE": value}


@pytest.mark.parametrize(
    "value", ["two\nlines", "cut ; here", "cut # here", "50%(here)s", '"quoted"', "both ' and \""]
)
def test_a_value_that_supervisor_cannot_hold_is_refused_with_its_name(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"a: the value of VALUE .* put it into a file"):
        program(tmp_path, environment={"VALUE": value}).section()
    with pytest.raises(ValueError, match=r"holds|begins"):
        quote(value)


def test_a_name_that_is_no_variable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'NOT-ONE' is not the name"):
        program(tmp_path, environment={"NOT-ONE": "1"}).section()


def test_only_the_main_process_is_asked_to_stop_and_all_are_killed_after_that(tmp_path: Path) -> None:
    configuration = read_back(tmp_path, program(tmp_path, stop_timeout=61, stop_signal="QUIT"))["a"]
    assert configuration.stopasgroup is False
    assert configuration.killasgroup is True
    assert configuration.stopwaitsecs == 61
    assert configuration.stopsignal.name == "SIGQUIT"


def test_a_command_with_a_percent_sign_stays_as_it_is(tmp_path: Path) -> None:
    one = Program("a", "/bin/echo 100%", str(tmp_path), str(tmp_path / "a.log"))
    assert read_back(tmp_path, one)["a"].command == "/bin/echo 100%"


def test_a_socket_stays_in_the_home_while_its_path_is_short_enough() -> None:
    assert Layout(Path("/srv/demo")).socket == Path("/srv/demo/supervisor/supervisor.sock")


def test_a_long_home_has_its_socket_in_a_short_place_that_depends_on_the_home_alone() -> None:
    one, other = Path("/" + "x" * 100), Path("/" + "y" * 100)
    assert len(str(Layout(one).socket) + ".4194304") < 108
    assert Layout(one).socket == Layout(one).socket != Layout(other).socket


def test_a_directory_for_the_socket_is_made_private(tmp_path: Path) -> None:
    check_private(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    check_private(tmp_path / "new")


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_directory_for_the_socket_that_somebody_else_made_is_refused(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("")
    elif kind == "a link":
        (tmp_path / "target").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "target")
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(SupervisorError, match="only this user can open; remove it"):
        check_private(place)
