"""Measures how long a cluster takes to come up, by its number of hosts: `make bench-deploy`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console

from clusterkit.ops.cli_options import ROOT
from clusterkit.ops.tables import new_table
from tests.benchmarks import machine, report
from tests.benchmarks.processes import MeasureError

_LAB: Final = "bench-deploy"
_PAGE: Final = ROOT / "docs" / "howto" / "deploy-time.md"
#: Steps that the table of the largest lab has a line for.
_STEPS: Final = 12


@dataclass(frozen=True)
class Deployment:
    """What ``cluster-up`` took on a lab."""

    hosts: int
    first: dict[str, Any]
    """On blank hosts, as its JSON says."""
    again: dict[str, Any]
    """Right after it: nothing to change."""
    load: float
    """Of the machine before, mean of a minute."""


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="make bench-deploy", description=__doc__)
    parser.add_argument("hosts", nargs="*", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--write", action="store_true", help=f"write {_PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    console, errors = Console(), Console(stderr=True)
    found = []
    try:
        if options.write:
            machine.refuse_changed(ROOT)
        for count in options.hosts:
            errors.print(f"{count} hosts", highlight=False)
            found.append(measure(count))
    except MeasureError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if options.write:
        write(found)
    if options.json:
        console.print_json(json.dumps([vars(each) for each in found]))
        return
    table = new_table("cluster-up on blank hosts", *_COLUMNS, right=_COLUMNS)
    for each in found:
        table.add_row(*_row(each))
    console.print(table)


def measure(count: int) -> Deployment:
    """Bring a cluster up on ``count`` blank hosts, and once more; remove it.

    Raises:
        MeasureError: a command failed.
    """
    _make("lab-down")
    try:
        _make("lab-up", f"HOSTS={count}")
        time.sleep(5)  # the hosts' own start is not what is measured
        load = os.getloadavg()[0]
        return Deployment(count, _up(), _up(), load)
    finally:
        _make("lab-down")


def _up() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_make("cluster-up", f"CLUSTER={_LAB}", "JSON=1", "TIMES=1"))
    return found


def _make(target: str, *arguments: str) -> str:
    command = ["make", target, f"LAB={_LAB}", "YES=1", *arguments]
    own = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "CLUSTER", "LAB", "HOSTS", "JSON"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1_200, check=False
    )
    if done.returncode:
        raise MeasureError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


_COLUMNS: Final = ("hosts", "blank, s", "changes", "no change, s", "load before")


def _row(each: Deployment) -> tuple[str, ...]:
    first, again = each.first, each.again
    return (
        str(each.hosts),
        f"{first['seconds']:.0f}",
        str(first["changes"]),
        f"{again['seconds']:.0f}",
        f"{each.load:.1f}",
    )


def write(found: list[Deployment]) -> None:
    """Write the tables into the page."""
    page = _PAGE.read_text(encoding="utf-8")
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{' ---: |' * len(_COLUMNS)}"]
    lines += [f"| {' | '.join(_row(each))} |" for each in found]
    lines += ["", machine.measured(machine.hardware(ROOT))]
    page = report.between_marks(page, "deploy", "\n".join(lines))
    largest = max(found, key=lambda each: each.hosts)
    for mark, up in (("steps", largest.first), ("steps-again", largest.again)):
        page = report.between_marks(page, mark, _steps(largest.hosts, up))
    _PAGE.write_text(page, encoding="utf-8")


def _steps(hosts: int, up: dict[str, Any]) -> str:
    steps = sorted(up["times"], key=lambda step: -step["seconds"])
    lines = [
        f"{hosts} hosts, {up['seconds']:.0f} s in all:",
        "",
        "| phase | task | hosts | s |",
        "| --- | --- | ---: | ---: |",
        *(
            f"| {step['phase']} | {step['task']} | {step['hosts']} | {step['seconds']:.1f} |"
            for step in steps[:_STEPS]
        ),
    ]
    rest = sum(step["seconds"] for step in steps[_STEPS:])
    lines.append(f"| | {len(steps) - _STEPS} other tasks | | {rest:.1f} |")
    left = up["seconds"] - sum(step["seconds"] for step in steps)
    lines.append(f"| | preflight, building the release, probes, between tasks | | {left:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
