"""The commands ``clusterkit lab ...``: parse, call, print. What they do is in ``clusterkit.ops.lab``."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from clusterkit.ops import lab as labs
from clusterkit.ops import labssh
from clusterkit.ops.cli_options import ROOT, Json, print_json, stderr, stdout
from clusterkit.ops.errors import ClusterUnhealthyError
from clusterkit.ops.images import RELEASES, Release
from clusterkit.ops.labplan import DEFAULT_HOSTS, MOST_HOSTS
from clusterkit.ops.progress import Progress

DEFAULT_LAB = "lab"

commands = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Blank hosts on this machine, to try clusters out on: containers that boot systemd and sshd.",
)

LabName = Annotated[
    str, typer.Option("--lab", "-l", envvar="LAB", metavar="NAME", help="The lab, and its cluster's name.")
]


@commands.command("up", short_help="Make blank hosts, and the inventory of a cluster.")
def lab_up(
    lab: LabName = DEFAULT_LAB,
    hosts: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_HOSTS, help=f"How many. Default: as there are, else {DEFAULT_HOSTS}."),
    ] = None,
    debian: Annotated[
        Release | None, typer.Option(help=f"Their release. Default: as it is, else {RELEASES[0]}.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make blank hosts and the inventory of a cluster on them; start those that stand still.

    Running it again with more HOSTS adds some. It never removes one.

    \b
    Examples:
      clusterkit lab up
      clusterkit lab up --hosts 3 --lab small --debian bookworm
    """
    wanted = labs.Lab(lab, ROOT)
    with Progress(f"lab {lab}", labs.PHASES, stderr) as progress:
        done = labs.up(wanted, hosts, debian, progress)
    if as_json:
        print_json({"lab": lab, **asdict(done), "seconds": round(done.seconds, 1)})
        return
    _show_up(lab, done)


@commands.command("status", short_help="Show the lab's hosts, and whether they run.")
def lab_status(lab: LabName = DEFAULT_LAB, as_json: Json = False) -> None:
    """Show the lab's hosts, and whether they run; the exit code is 7 when one does not.

    \b
    Examples:
      clusterkit lab status
      clusterkit lab status --json | jq '.hosts[] | select(.state != "running")'
    """
    hosts = labs.status(labs.Lab(lab, ROOT))
    if as_json:
        print_json({"lab": lab, "hosts": [asdict(host) for host in hosts]})
    else:
        stdout.print(_table(hosts))
    unwell = [f"{host.host} ({host.state} {host.systemd}".rstrip() + ")" for host in hosts if not host.well]
    if unwell:
        raise ClusterUnhealthyError(
            f"{len(unwell)} of {len(hosts)} hosts not well: {', '.join(unwell)}",
            next_step=f"make lab-up LAB={lab} starts what stands still; make lab-ssh HOST=... to look around",
        )


@commands.command("ssh", short_help="Log in to a host as its administrator.")
def lab_ssh(
    host: Annotated[str, typer.Argument(help="Such as h1.")],
    command: Annotated[
        str, typer.Argument(envvar="COMMAND", help="What to run there; default: a shell.", show_default=False)
    ] = "",
    lab: LabName = DEFAULT_LAB,
) -> None:
    """Log in to a host as its administrator; sudo asks for nothing.

    \b
    Examples:
      clusterkit lab ssh h1
      clusterkit lab ssh h1 'sudo journalctl -u ssh | tail'
    """
    where = labs.Lab(lab, ROOT)
    login = labssh.command(where, labs.address(where, host))
    os.execvp(login[0], [*login, *([command] if command else [])])  # noqa: S606 - becomes ssh


@commands.command("down", short_help="Remove the lab, or one of its hosts.")
def lab_down(
    lab: LabName = DEFAULT_LAB,
    host: Annotated[str, typer.Option(help="Remove only this host; lab up makes a blank one again.")] = "",
) -> None:
    """Remove the lab: its hosts with all that is on them, its network, keys and inventory.

    \b
    Examples:
      clusterkit lab down
      clusterkit lab down --host h8
    """
    gone = labs.Lab(lab, ROOT)
    if not host:
        hosts = labs.down(gone)
        _say(f"lab {lab} is gone: {', '.join(hosts)}" if hosts else f"there was no lab {lab}")
    elif labs.remove(gone, host):
        _say(f"{host} is gone; the inventory still has it, and make lab-up LAB={lab} makes a blank one")
    else:
        _say(f"{host} is gone, from the inventory too")


def _show_up(lab: str, done: labs.Up) -> None:
    count = len(done.addresses)
    how = [
        f"{len(hosts)} {word}" for word, hosts in (("new", done.added), ("started", done.started)) if hosts
    ]
    hosts = "1 host answers" if count == 1 else f"{count} hosts answer"
    _say(f"lab {lab}: {hosts} by SSH after {done.seconds:.1f} s ({', '.join(how) or 'unchanged'})")
    if done.moved:
        _say(f"in other groups than before: {', '.join(done.moved)}; what they ran as such stays on them")
    for host in reversed(done.surplus):
        _say(f"{host} stays, beyond the number asked for. To remove it: make lab-down LAB={lab} HOST={host}")
    _say(f"next: make cluster-up CLUSTER={lab}   (inventory: deploy/clusters/{lab})")


def _table(hosts: list[labs.HostStatus]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("host", "address", "debian", "state", "systemd", "up", "groups"):
        table.add_column(column, justify="right" if column == "up" else "left")
    for host in hosts:
        colour = "" if host.well else "red"
        up = _duration(host.uptime) if host.uptime else "-"
        cells = (host.host, host.address, host.release, host.state, host.systemd or "-", up)
        table.add_row(*cells, " ".join(host.groups), style=colour)
    return table


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _say(text: str) -> None:
    stdout.print(text, highlight=False, soft_wrap=True)
