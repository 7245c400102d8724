"""Measures the kit beside its peers, pair by pair: `make bench`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from clusterkit.ops import inventory
from clusterkit.ops.cli_options import ROOT
from clusterkit.ops.progress import Progress
from clusterkit.ops.suggest import did_you_mean
from tests.benchmarks import machine, report, scene
from tests.benchmarks.processes import MeasureError
from tests.benchmarks.samples import Table
from tests.benchmarks.workloads import calls, cpu, cpumap, drain, idle, latency, profiles, publish, waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKLOADS = {
    module.WORKLOAD.name: module.WORKLOAD
    for module in (publish, drain, waiting, cpu, latency, profiles, calls, cpumap, idle)
}
PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"


def main() -> None:
    """Measure as the command line says; every table is printed and kept as soon as it is there."""
    options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    names = options.bench or list(WORKLOADS)
    console, errors = Console(), Console(stderr=True)
    try:
        run(names, options, console, errors)
    except MeasureError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says; end the process when it is wrong."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("bench", nargs="*", help=f"of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of each two systems [5]")
    parser.add_argument("--quick", action="store_true", help="the least of everything: does it work?")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and its pictures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--cluster", type=Path, default=ROOT / "deploy" / "clusters" / "bench")
    options = parser.parse_args(arguments)
    for name in options.bench:
        if name not in WORKLOADS:
            hint = did_you_mean(name, WORKLOADS, otherwise="There are")
            parser.error(f"there is no benchmark {name!r}. {hint}")
    if options.repeats < 1:
        parser.error(f"REPEATS has to be at least 1, not {options.repeats}")
    return options


def run(names: list[str], options: argparse.Namespace, console: Console, errors: Console) -> None:
    """Measure the workloads ``names``."""
    if options.write:
        machine.refuse_changed(ROOT)
    repeats = 1 if options.quick else options.repeats
    found: list[dict[str, Any]] = []
    with Progress("bench", ["Cluster", *names], errors) as progress:
        progress.start("Cluster")
        with scene.opened(options.cluster) as place:
            cluster = inventory.load(str(options.cluster), ROOT)
            there = machine.describe(cluster, ROOT)
            for name in names:
                progress.start(name)
                table = WORKLOADS[name].run(place, repeats, progress.doing, quick=options.quick)
                found.append({"machine": there, **table.to_json()})
                keep(found[-1], place.directory)
                if options.write:
                    write(table, there)
                if not options.json:
                    console.print(report.terminal(table))
                    console.print(report.footnotes(table), style="dim", highlight=False)
    if options.json:
        console.print_json(json.dumps(found))


def keep(found: dict[str, Any], directory: Path) -> None:
    """Keep a table with what it was measured on, beside those of other days."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = directory / f"{stamp}-{found['bench']}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write(table: Table, there: dict[str, str]) -> None:
    """Write a table into the page, with its picture and what it was measured on."""
    picture = IMAGES / f"bench-{table.bench}.svg"
    picture.write_text(report.svg(table), encoding="utf-8")
    text = report.markdown(table, f"images/{picture.name}")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        report.between_marks(page, table.bench, f"{text}\n\n{machine.measured(there)}"), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
