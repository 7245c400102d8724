"""The command ``clusterkit``: parses, calls, prints. What it does is in the modules beside it."""

from __future__ import annotations

import os
import sys
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from clusterkit.ops import (
    audit_cli,
    backup_cli,
    broker_cli,
    compare_cli,
    compose_cli,
    dlq_cli,
    drain_cli,
    drills_cli,
    lab_cli,
    queue_cli,
    release_cli,
    scale_cli,
    tune_cli,
)
from clusterkit.ops.cli_options import (
    ROOT,
    ClusterName,
    Json,
    Yes,
    brought_up,
    load,
    print_json,
    stderr,
    stdout,
)
from clusterkit.ops.errors import ClusterUnhealthyError
from clusterkit.ops.images import RELEASES, Release
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER
from clusterkit.runtime.errors import (
    BadInputError,
    ClusterkitError,
    ClusterUnreachableError,
    InterruptedByUserError,
    report,
)

EXIT_CODES = """
Exit codes: 0 done; 2 usage; 3 inventory; 4 preflight (nothing was changed); 5 deployment;
6 the cluster does not answer; 7 it answers but is not well; 8 the app's release; 9 the task failed;
10 unknown task; 11 no result in time; 12 not confirmed by the broker; 13 no such cluster;
14 the broker refused a task; 15 a comparison found a difference; 130 interrupted.
"""


class _GroupsFirst(TyperGroup):
    """Lists groups of commands before commands, for with them one begins."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: not isinstance(self.commands[name], TyperGroup))


app = typer.Typer(
    cls=_GroupsFirst,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"Deploys and operates Celery clusters that lose no task.\n{EXIT_CODES}",
)
cluster_commands = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Bring a cluster up, look at it, take it down."
)
broker_commands = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Restart, upgrade, remove and replace brokers."
)
app.add_typer(cluster_commands, name="cluster")
app.add_typer(broker_commands, name="broker")
app.add_typer(dlq_cli.commands, name="dlq", short_help="Dead letters: look at them, replay them, drop them.")
app.add_typer(queue_cli.commands, name="queue")
app.add_typer(lab_cli.commands, name="lab", short_help="Blank hosts on this machine, to try clusters out on.")
app.add_typer(compose_cli.compose_commands, name="compose")
app.add_typer(drills_cli.commands, name="drill")
broker_commands.command("restart", short_help="Restart the brokers one after the other.")(broker_cli.restart)
broker_commands.command("upgrade", short_help="Bring a newer RabbitMQ to them alike.")(broker_cli.upgrade)


# In the order in which the help lists them.
@cluster_commands.command(short_help="Look for all that would keep it from coming up.")
def preflight(cluster: ClusterName = DEFAULT_CLUSTER, as_json: Json = False) -> None:
    """Look for everything that would keep the cluster from coming up, on every host; change nothing.

    \b
    Examples:
      clusterkit cluster preflight --cluster lab
    """
    from clusterkit.ops import deployment, status

    loaded = load(cluster)
    found = deployment.preflight(loaded, stderr)
    if as_json:
        print_json({name: facts.to_ansible() for name, facts in found.items()})
    else:
        status.show_preflight(loaded, found, stdout)


@cluster_commands.command(short_help="Make the hosts what the inventory says, and prove it.")
def up(
    cluster: ClusterName = DEFAULT_CLUSTER,
    bundle: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Distribution packages for hosts that reach no registry."
        ),
    ] = None,
    show_times: Annotated[bool, typer.Option("--times", help="Also show which step took how long.")] = False,
    as_json: Json = False,
) -> None:
    """Make the hosts what the inventory says, and prove it with probe tasks.

    Running it again changes only what differs, and starts what is down.

    \b
    Examples:
      clusterkit cluster up
      clusterkit cluster up --cluster lab
      clusterkit cluster up --cluster ~/inventories/production
      clusterkit cluster up --cluster lab --bundle .cluster/bundles/trixie.tar   # made by clusterkit bundle
      clusterkit cluster up --cluster lab --times
    """
    from clusterkit.ops import deployment, status, times

    loaded = load(cluster)
    done = deployment.up(loaded, stderr, bundle)
    if as_json:
        taken = {"times": [asdict(each) for each in times.by_task(done.ran)]} if show_times else {}
        print_json({**done.to_json(loaded), **taken})
        return
    if show_times:
        stdout.print(times.table(done.ran, done.seconds))
    status.show_deployed(loaded, done, stdout)


@cluster_commands.command("status", short_help="Show services, worker nodes, queues, what is wrong.")
def show_status(cluster: ClusterName = DEFAULT_CLUSTER, as_json: Json = False) -> None:
    """Show services, worker nodes and queues, and what is not as it should be.

    The exit code is then 7, or 6 when the broker does not answer.

    \b
    Examples:
      clusterkit cluster status
      clusterkit cluster status --json | jq '.nodes[] | {name, pool, running}'
    """
    from clusterkit.ops import deployment, status

    found = deployment.status_of(brought_up(cluster))
    if as_json:
        print_json(found.to_json())
    else:
        status.show(found, stdout)
    if found.problems:
        kind = ClusterUnhealthyError if found.broker_version else ClusterUnreachableError
        raise kind(
            f"{len(found.problems)} problem(s) with cluster {found.cluster!r}: {found.problems[0]}",
            next_step=f"make cluster-up CLUSTER={cluster} starts what is down; cluster-logs says why",
        )


@cluster_commands.command(short_help="Send a probe task through every queue.")
def check(
    cluster: ClusterName = DEFAULT_CLUSTER,
    deadline: Annotated[float, typer.Option(help="Seconds every worker node has to answer.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Send a probe task through every queue of every worker node and wait for all to come back.

    \b
    Examples:
      clusterkit cluster check
      clusterkit cluster check --deadline 120   # behind a backlog
    """
    from clusterkit.ops import deployment, drained, status

    loaded = brought_up(cluster, containers=True)
    probes = deployment.check(loaded, deadline)
    if as_json:
        print_json(
            {
                "complete": probes.complete,
                "answers_ms": probes.answers,
                "missing": probes.missing,
                "drained": [asdict(mark) for mark in drained.marks(loaded)],
            }
        )
    else:
        status.show_probes(probes, stdout)
        status.show_drained(drained.marks(loaded), stdout)
    if not probes.complete:
        raise ClusterUnhealthyError(
            "\n  ".join(["not every worker node answered:", *probes.describe_missing()]),
            next_step=f"make cluster-status CLUSTER={cluster}; a backlog also delays probes (--deadline)",
        )


@cluster_commands.command()
def logs(
    cluster: ClusterName = DEFAULT_CLUSTER,
    service: Annotated[
        str, typer.Option("--service", "-s", help="Only this service, such as worker-cpu.")
    ] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Last lines of each service.")] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")
    ] = False,
) -> None:
    """Show the services' last log lines.

    \b
    Examples:
      clusterkit cluster logs
      clusterkit cluster logs --service worker-cpu --follow
    """
    from clusterkit.ops import logfiles

    logfiles.show(brought_up(cluster), service, lines=lines, follow=follow, console=stdout)


@cluster_commands.command(short_help="Restart services one after the other.")
def restart(
    services: Annotated[list[str] | None, typer.Argument(help="Services to restart; default: all.")] = None,
    cluster: ClusterName = DEFAULT_CLUSTER,
    timeout: broker_cli.Timeout = 120,
    as_json: Json = False,
) -> None:
    """Restart services one after the other; running tasks finish first, as long as stop_timeout allows.

    A broker waits for its turn as with broker restart.

    \b
    Examples:
      clusterkit cluster restart
      clusterkit cluster restart worker-cpu flower
    """
    from clusterkit.ops import deployment

    names = deployment.restart(brought_up(cluster), services or [], stderr, timeout)
    if as_json:
        print_json({"restarted": names})
        return
    for name in names:
        stdout.print(f"restarted {name}", highlight=False)


release_cli.register(cluster_commands)
cluster_commands.command(short_help="Let a worker node run N tasks at once, from now on.")(scale_cli.scale)
cluster_commands.command(short_help="Show what the hosts have, and what of it is used.")(tune_cli.discover)
cluster_commands.command(short_help="Measure the tasks; propose concurrency and prefetch.")(tune_cli.tune)
cluster_commands.command(short_help="Have a host run no tasks; what runs there ends first.")(drain_cli.drain)
cluster_commands.command(short_help="Have a drained host work again.")(drain_cli.undrain)
cluster_commands.command(short_help="Write all but messages into one encrypted file.")(backup_cli.backup)
cluster_commands.command(short_help="Make a blank cluster what a backed-up one was.")(backup_cli.restore)
cluster_commands.command(short_help="Show who changed the cluster, when, with what command.")(audit_cli.audit)


@cluster_commands.command()
def rotate(
    cluster: ClusterName = DEFAULT_CLUSTER,
    authority: Annotated[
        bool, typer.Option("--authority", help="A new certificate authority, too; three steps.")
    ] = False,
) -> None:
    """Give every host a new certificate. No connection is cut: servers take it over while they run.

    Only Sentinel, which holds nothing, is restarted, one after the other.

    \b
    Examples:
      clusterkit cluster rotate --cluster lab
      clusterkit cluster rotate --cluster lab --authority
    """
    from clusterkit.ops import deployment, status

    loaded = brought_up(cluster)
    status.show_certificates(deployment.rotate(loaded, stderr, authority=authority), stdout)


@cluster_commands.command()
def down(cluster: ClusterName = DEFAULT_CLUSTER) -> None:
    """Stop every service. Messages, results and settings stay for the next up.

    \b
    Examples:
      clusterkit cluster down
    """
    from clusterkit.ops import deployment

    loaded = brought_up(cluster)
    deployment.down(loaded, stderr)
    stdout.print(
        f"cluster {loaded.name} is down; its data stays in {loaded.home}. Again: make cluster-up",
        highlight=False,
        soft_wrap=True,
    )


@cluster_commands.command(short_help="Stop every service and remove all of the cluster.")
def destroy(cluster: ClusterName = DEFAULT_CLUSTER, yes: Yes = False) -> None:
    """Stop every service and remove all that was made for the cluster: messages, results, secrets.

    The distribution's packages stay.

    \b
    Examples:
      clusterkit cluster destroy
      clusterkit cluster destroy --yes
    """
    from clusterkit.ops import deployment

    loaded = load(cluster)
    if not yes:
        if not sys.stdin.isatty():
            raise BadInputError(
                f"destroying cluster {loaded.name!r} removes its messages and results",
                next_step="YES=1 make cluster-destroy, or --yes",
            )
        question = f"Remove cluster {loaded.name!r} with its messages, results and secrets in {loaded.home}?"
        if not typer.confirm(question):
            raise InterruptedByUserError("nothing was removed")
    deployment.destroy(loaded, stderr)
    stdout.print(f"cluster {loaded.name} is gone", highlight=False)


BrokerHost = Annotated[str, typer.Argument(help="The host, as the inventory names it.")]


@broker_commands.command("remove", short_help="Take a broker host out of the cluster.")
def remove_broker(host: BrokerHost, cluster: ClusterName = DEFAULT_CLUSTER) -> None:
    """Take a broker host out: its queues' members, its membership, its data. It may be dead.

    Nothing is done when the others could not do without it.

    \b
    Examples:
      clusterkit broker remove h5 --cluster lab   # then take h5 out of the group brokers
    """
    from clusterkit.ops import deployment

    loaded = brought_up(cluster)
    deployment.remove_broker(loaded, host, stderr)
    stdout.print(
        f"{host} is no broker of {loaded.name} any more; take it out of the group brokers in"
        f" {loaded.directory / 'hosts.yml'}",
        highlight=False,
        soft_wrap=True,
    )


@broker_commands.command("replace", short_help="Forget a broker host that lost its data.")
def replace_broker(host: BrokerHost, cluster: ClusterName = DEFAULT_CLUSTER) -> None:
    """Make the brokers forget a host that lost its data, so that cluster up has it join anew.

    \b
    Examples:
      clusterkit broker replace h3 --cluster lab && clusterkit cluster up --cluster lab
    """
    from clusterkit.ops import deployment

    loaded = brought_up(cluster)
    deployment.remove_broker(loaded, host, stderr)
    stdout.print(
        f"the brokers have forgotten {host}. Next: make cluster-up CLUSTER={cluster}",
        highlight=False,
        soft_wrap=True,
    )


@app.command(short_help="Collect the distribution's packages in one file.")
def bundle(
    debian: Annotated[Release, typer.Option(help="The hosts' release.")] = RELEASES[0],
    as_json: Json = False,
) -> None:
    """Collect the distribution's packages in one file, for hosts that reach no registry of them.

    \b
    Examples:
      clusterkit bundle --debian bookworm
      clusterkit cluster up --cluster lab --bundle .cluster/bundles/bookworm.tar
    """
    from clusterkit.ops import bundle as bundles
    from clusterkit.ops import needs
    from clusterkit.ops.progress import Progress

    with Progress(f"bundle for Debian {debian}", ["Packages"], stderr) as progress:
        progress.start("Packages")
        made = bundles.build(ROOT, debian, needs.alternatives(), progress.doing)
    megabytes = made.path.stat().st_size // 1_000_000
    if as_json:
        print_json({"path": str(made.path), "megabytes": megabytes, "packages": made.packages})
    else:
        packages = ", ".join(made.packages)
        line = f"{made.path} ({megabytes} MB, {made.architecture}): {packages}"
        stdout.print(line, highlight=False, soft_wrap=True)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def submit(context: typer.Context) -> None:
    """Submit a task by name: clients/submit.py with the same arguments."""
    script = ROOT / "clients" / "submit.py"
    os.execv(sys.executable, [sys.executable, str(script), *context.args])  # noqa: S606 - becomes the script


@app.command()
def flower(
    cluster: ClusterName = DEFAULT_CLUSTER,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Say where Flower is and where its password is.

    \b
    Examples:
      clusterkit flower
      clusterkit flower --open
    """
    from clusterkit.ops import status

    loaded = brought_up(cluster, containers=True)
    where = loaded.state_dir / "secrets.yml"
    pages = status.flower_pages(loaded)
    url = pages["admin"]
    if as_json:
        print_json({"pages": pages, "password_file": str(where), "password_key": "flower"})
    else:
        for user, page in pages.items():
            stdout.print(f"{page}  user {user}", highlight=False, soft_wrap=True)
        stdout.print(f"passwords: under `flower` in {where}", highlight=False, soft_wrap=True)
    if open_browser and not webbrowser.open(url):
        stderr.print("no browser could be opened here; open the address yourself")


app.command(short_help="Run the same work under nine systems.")(compare_cli.compare)


def main() -> NoReturn:
    """Run the command and end the process with the code of what happened."""
    try:
        app(prog_name="clusterkit")  # ends the process itself, with 2 for a usage error and 130 for Ctrl-C
    except ClusterkitError as error:
        sys.exit(report(error))
    sys.exit(0)
