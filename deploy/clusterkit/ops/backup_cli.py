"""The commands ``cluster backup`` and ``restore``: parse, call, print; the work is in ``ops.backup``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clusterkit.ops.cli_options import ROOT, ClusterName, Json, brought_up, load, print_json, stderr, stdout
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from clusterkit.ops.backup import Restored
    from clusterkit.ops.vault import Vault

#: Said wherever it matters.
_NOT_PART = "Messages and results are not part of it (clusterkit queue dump drains a queue into a file)."


PasswordFile = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="A file with the backup's password, or a program that prints it. Default:"
        " $ANSIBLE_VAULT_PASSWORD_FILE, which also encrypts the cluster's own secrets; else it is asked for.",
    ),
]


def backup(
    file: Annotated[
        Path | None,
        typer.Argument(dir_okay=False, help="A new file. Default: below .cluster/backups/."),
    ] = None,
    cluster: ClusterName = DEFAULT_CLUSTER,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Write inventory, passwords, certificates, the broker's definitions and the schedule to one file.

    It is encrypted as ansible-vault does; without its password the file is of no use. Messages and results
    are not part of it, nor is the app.

    \b
    Examples:
      clusterkit cluster backup
      clusterkit cluster backup /mnt/backups/monday.backup --password-file ~/.backup-password
    """
    from clusterkit.ops import backup as backups

    wanted = brought_up(cluster)
    path = file or backups.default_path(wanted)
    made = backups.make(wanted, path, _vault(password_file, new=True), stderr)
    if as_json:
        print_json(
            {
                "cluster": made.cluster,
                "file": str(path),
                "bytes": path.stat().st_size,
                "schedule": len(made.schedule),
                "queues": len(made.definitions["queues"]),
                "files": [*made.inventory, *made.state],
            }
        )
        return
    _say(
        f"{path}: {path.stat().st_size // 1000} kB, {len(made.schedule)} entries of the schedule. {_NOT_PART}"
    )
    _say("Keep it, and its password, on another machine.")


def restore(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A backup.")],
    cluster: ClusterName = DEFAULT_CLUSTER,
    force: Annotated[
        bool, typer.Option("--force", help="Put it in the place of what is there; that is moved aside.")
    ] = False,
    keep_inventory: Annotated[
        bool,
        typer.Option(
            "--keep-inventory", help="The inventory that is there counts: hosts with new addresses."
        ),
    ] = False,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Make a blank cluster what a backed-up one was: same passwords, same authority, same schedule.

    Puts inventory, passwords and certificates in place, brings the cluster up, then adds queues and bindings
    that were not from the inventory, and the schedule. Clients work with the files they have. Messages and
    results are not part of it. Run again, it goes on where it was.

    \b
    Examples:
      clusterkit cluster restore monday.backup --cluster lab
      clusterkit cluster restore monday.backup --cluster lab --keep-inventory   # new hosts
    """
    from clusterkit.ops import backup as backups

    content = backups.read(file, _vault(password_file, new=False))
    directory = _directory(cluster, content.cluster)
    described = load(str(directory)) if keep_inventory else backups.loaded(content, ROOT)
    found = backups.in_the_way(content, directory, described.state_dir, keep_inventory=keep_inventory)
    if found and not force:
        raise BadInputError(
            "\n  ".join(
                [f"cluster {content.cluster!r} is here already; this is not what the backup has:"]
                + [str(path) for path in found]
            ),
            next_step="--force moves them aside; --keep-inventory takes the inventory that is there",
        )
    moved_to = backups.put_in_place(content, described, directory, keep_inventory=keep_inventory)
    done = backups.finish(content, load(str(directory)), force=force, console=stderr)
    if as_json:
        print_json(
            {
                "cluster": content.cluster,
                "made": content.made.isoformat(),
                "definitions": list(done.definitions),
                "not_restored": list(done.not_restored),
                "schedule": done.schedule,
                "schedule_kept": list(done.kept),
                "moved_to": str(moved_to) if moved_to else None,
                "changes": done.deployed.changes,
                "seconds": round(done.deployed.seconds, 1),
            }
        )
        return
    if moved_to:
        _say(f"moved aside: what was there is in {moved_to}")
    _show(done, content.cluster)


def _show(done: Restored, name: str) -> None:
    for what in done.definitions:
        _say(f"declared   {what}")
    for what in done.not_restored:
        _say(f"left out   {what}: not from the inventory, and the next cluster-up would remove it")
    kept = f"; {len(done.kept)} there already, from the app itself" if done.kept else ""
    _say(f"schedule   {done.schedule} entries back{kept}")
    _say(f"restored   cluster {name}, {done.deployed.seconds:.0f} s. {_NOT_PART}")


def _directory(cluster: str, name: str) -> Path:
    """Return where the inventory belongs; whoever restores has to name the cluster that is meant."""
    directory = Path(cluster).expanduser() if "/" in cluster else ROOT / "deploy" / "clusters" / cluster
    if directory.name != name:
        raise BadInputError(
            f"this is a backup of cluster {name!r}, not of {directory.name!r}",
            next_step=f"CLUSTER={name}, or --cluster {name}",
        )
    return directory.resolve()


def _vault(password_file: Path | None, *, new: bool) -> Vault:
    from clusterkit.ops import vault

    if password_file:
        return vault.Vault(password_file)
    if found := vault.from_environment():
        return found
    if not sys.stdin.isatty():
        raise BadInputError(
            "the backup's password cannot be asked for here",
            next_step=f"--password-file, or {vault.VAULT_VARIABLE}, names a file with it",
        )
    password = typer.prompt("Password of the backup", hide_input=True, confirmation_prompt=new, err=True)
    return vault.Vault(typed=password)


def _say(line: str) -> None:
    stdout.print(line, highlight=False, markup=False, soft_wrap=True)
