"""A cluster in one encrypted file: inventory, secrets, certificates, definitions, schedule; and back.

Messages and results are not part of it: they are the brokers' and the stores' own to keep. Nothing of it is
ever on a disk unencrypted, but where it belongs; the inventory also, while a restore checks it, below
`.cluster` in a directory that only its owner can enter.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
import yaml

from clusterkit.ops import definitions as broker_definitions
from clusterkit.ops import deployment, inventory, schedule, topology
from clusterkit.ops import secrets as secret_store
from clusterkit.ops.errors import PreflightError
from clusterkit.ops.lock import alone
from clusterkit.ops.progress import Progress
from clusterkit.ops.schedule import Entry
from clusterkit.ops.vault import ENCRYPTED, write_private
from clusterkit.runtime import results
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.errors import BadInputError, ClusterUnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis
    from rich.console import Console

    from clusterkit.ops.deployment import Deployed
    from clusterkit.ops.model import Cluster
    from clusterkit.ops.vault import Vault

FORMAT: Final = "clusterkit backup 1"
#: Of the state directory; all else there follows from these and the inventory.
_SECRETS, _PKI = "secrets.yml", "pki"
#: Seconds the result store may take to answer.
_STORE_TIMEOUT: Final = 5.0
#: The part of a file's mode that is kept, and what a file has without one: it may hold a password.
_PERMISSIONS, _PRIVATE = 0o777, 0o600

Files = dict[str, bytes]


@dataclass(frozen=True)
class Backup:
    """What is in the file. Contents of files are as they were, encrypted ones too."""

    cluster: str
    made: datetime
    inventory: Files = field(repr=False)
    state: Files = field(repr=False)
    definitions: dict[str, Any] = field(repr=False)
    schedule: tuple[Entry, ...]
    modes: dict[str, int] = field(default_factory=dict)
    """Permissions of the inventory's files; a backup made before they were kept has none."""

    def to_bytes(self) -> bytes:
        """Return it as it is encrypted."""
        return json.dumps(
            {
                "format": FORMAT,
                "cluster": self.cluster,
                "made": self.made.isoformat(),
                "inventory": _encoded(self.inventory),
                "state": _encoded(self.state),
                "definitions": self.definitions,
                "schedule": [asdict(entry) for entry in self.schedule],
                "modes": self.modes,
            }
        ).encode()

    @classmethod
    def from_bytes(cls, plain: bytes, path: Path) -> Backup:
        """Make one from what was decrypted from the file ``path``.

        Raises:
            BadInputError: it is no backup, or one of a version that this kit does not know.
        """
        try:
            content = json.loads(plain)
            _check_format(content["format"])
            return cls(
                cluster=content["cluster"],
                made=datetime.fromisoformat(content["made"]),
                inventory=_decoded(content["inventory"]),
                state=_decoded(content["state"]),
                definitions=content["definitions"],
                schedule=tuple(Entry(**entry) for entry in content["schedule"]),
                modes={name: int(mode) for name, mode in content.get("modes", {}).items()},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(
                f"{path} is no backup of a cluster: {error}", next_step="make cluster-backup makes them"
            ) from None


def _check_format(found: str) -> None:
    if found != FORMAT:
        raise ValueError(f"its format is {found!r}, not {FORMAT!r}")


def _encoded(files: Files) -> dict[str, str]:
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def _decoded(files: Mapping[str, str]) -> Files:
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} leads out of its directory")
    return {name: base64.b64decode(content) for name, content in files.items()}


def default_path(cluster: Cluster) -> Path:
    """Return where a backup goes unless told otherwise: not where destroying the cluster removes it."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return cluster.root / ".cluster" / "backups" / f"{cluster.name}-{stamp}.backup"


def make(cluster: Cluster, path: Path, vault: Vault, console: Console) -> Backup:
    """Write a backup of the running ``cluster`` to the new file ``path``, encrypted, mode 0600.

    Raises:
        BadInputError: there is such a file, or it cannot be written.
        ClusterUnreachableError: broker or result store do not answer; nothing was written.
    """
    if path.exists():
        raise BadInputError(f"{path} is there already", next_step="give another file's name")
    phases = ["Definitions", "Schedule", "Files", "Encrypt"]
    with alone(cluster), Progress(f"cluster {cluster.name}: backup", phases, console) as progress:
        progress.start("Definitions")
        with deployment.administrator(cluster) as broker:
            found = broker.definitions()
        progress.start("Schedule")
        with _Store(cluster) as store:
            entries = tuple(schedule.read(store))
        progress.start("Files")
        files = _files(cluster.directory)
        backup = Backup(
            cluster.name,
            datetime.now(UTC),
            files,
            _state_files(cluster.state_dir),
            found,
            entries,
            {name: (cluster.directory / name).stat().st_mode & _PERMISSIONS for name in files},
        )
        progress.start("Encrypt")
        encrypted = vault.encrypt(backup.to_bytes())
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, encrypted)
        except OSError as error:
            raise BadInputError(f"{path} cannot be written: {error.strerror}") from error
    return backup


def read(path: Path, vault: Vault) -> Backup:
    """Decrypt a backup and make sure of all of it; the vault notices any change to the file.

    Raises:
        BadInputError: it is no backup.
        PreflightError: it cannot be decrypted, or it lacks something.
        InventoryError: its inventory is none.
    """
    try:
        encrypted = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from error
    if not encrypted.startswith(ENCRYPTED):
        raise BadInputError(f"{path} is no backup of a cluster", next_step="make cluster-backup makes them")
    backup = Backup.from_bytes(vault.decrypt(encrypted, path), path)
    if not _are_secrets(backup.state.get(_SECRETS, b"")):
        raise PreflightError(f"{path} has no secrets of cluster {backup.cluster!r} in it")
    return backup


def _are_secrets(content: bytes) -> bool:
    if content.startswith(ENCRYPTED):  # with the vault that the cluster itself has
        return True
    try:
        return isinstance(yaml.safe_load(io.BytesIO(content)), dict)
    except yaml.YAMLError:
        return False


def loaded(backup: Backup, root: Path) -> Cluster:
    """Return the cluster as the backup's inventory describes it, checked as any inventory is.

    Raises:
        InventoryError: it is wrong, or this version of the kit does not take it.
    """
    state = root / ".cluster"
    state.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="restore-", dir=state) as scratch:
        directory = Path(scratch) / backup.cluster
        _write_inventory(backup, directory)
        return inventory.load(directory, root)


def in_the_way(
    backup: Backup, directory: Path, state_dir: Path, *, keep_inventory: bool = False
) -> list[Path]:
    """Return what is there already and other than in the backup: an inventory, secrets, certificates."""
    found = []
    if not keep_inventory and directory.exists() and _files(directory) != backup.inventory:
        found.append(directory)
    if not _is_same_cluster(backup, state_dir):
        found += [state_dir / name for name in (_SECRETS, _PKI) if (state_dir / name).exists()]
    return found


def _is_same_cluster(backup: Backup, state_dir: Path) -> bool:
    """Return whether the secrets there are the backup's: the certificates there are theirs, or newer."""
    return _state_files(state_dir).get(_SECRETS) == backup.state[_SECRETS]


@dataclass(frozen=True)
class Restored:
    """What a restore did, after ``up``."""

    deployed: Deployed
    definitions: tuple[str, ...]
    """What was declared at the broker again, beyond the kit's own."""
    not_restored: tuple[str, ...]
    """What the broker had and ``up`` would remove: users, rights and policies not from the inventory."""
    schedule: int
    """Entries put into the schedule."""
    kept: tuple[str, ...]
    """Entries that were there already, from the app itself, and stayed."""


def put_in_place(backup: Backup, cluster: Cluster, directory: Path, *, keep_inventory: bool) -> Path | None:
    """Put inventory, secrets and certificates where they belong; return where what was there is now.

    ``cluster`` says which; its state directory is the place of the secrets.
    """
    aside = None
    with alone(cluster):
        state_dir = cluster.state_dir
        found = in_the_way(backup, directory, state_dir, keep_inventory=keep_inventory)
        if found:
            aside = state_dir / time.strftime("replaced-%Y%m%d-%H%M%S", time.gmtime())
            aside.mkdir(mode=0o700)
            for path in found:
                # The inventory may be on another file system than the state.
                shutil.move(path, aside / ("inventory" if path == directory else path.name))
        if not keep_inventory:
            _write_inventory(backup, directory)
        if not _is_same_cluster(backup, state_dir):
            # The secrets last: with them in place, a rerun takes all of it for restored.
            for name in sorted(backup.state, key=_SECRETS.__eq__):
                path = state_dir / name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_private(path, backup.state[name])
    return aside


def finish(backup: Backup, cluster: Cluster, *, force: bool, console: Console) -> Restored:
    """Bring ``cluster`` up from what was put in place, then give it definitions and schedule back.

    Raises:
        PreflightError, ReleaseError, DeployError, ClusterUnhealthyError: as bringing it up does; the same
            command, run again, goes on.
    """
    deployed = deployment.up(cluster, console)
    with Progress(f"cluster {cluster.name}: restore", ["Definitions", "Schedule"], console) as progress:
        progress.start("Definitions")
        secrets = secret_store.ensure(cluster.state_dir / _SECRETS)
        again, not_again = broker_definitions.additions(
            backup.definitions, topology.definitions(cluster, secrets)
        )
        if again:
            with deployment.administrator(cluster) as broker:
                broker.add_definitions(again)
        progress.start("Schedule")
        with _Store(cluster) as store:
            kept = schedule.write(store, list(backup.schedule), replace=force)
    return Restored(
        deployed,
        tuple(broker_definitions.title(section, item) for section, items in again.items() for item in items),
        tuple(not_again),
        len(backup.schedule) - len(kept),
        tuple(kept),
    )


def _files(directory: Path) -> Files:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _state_files(state_dir: Path) -> Files:
    secrets = state_dir / _SECRETS
    found = {_SECRETS: secrets.read_bytes()} if secrets.exists() else {}
    if (state_dir / _PKI).is_dir():
        found |= {f"{_PKI}/{name}": content for name, content in _files(state_dir / _PKI).items()}
    return found


def _write_inventory(backup: Backup, directory: Path) -> None:
    for name, content in backup.inventory.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, content)
        path.chmod(backup.modes.get(name, _PRIVATE))


class _Store:
    """The result store as the operator, its errors as the kit's."""

    def __init__(self, cluster: Cluster) -> None:
        self._name = cluster.name
        file = ClusterFile.load(cluster.state_dir / "operator.json")
        self._client = results.client(
            file, patience=results.PATIENCE, timeout=_STORE_TIMEOUT, decode_responses=True
        )

    def __enter__(self) -> Redis:
        return self._client

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._client.close()
        if isinstance(error, redis.exceptions.RedisError):
            raise ClusterUnreachableError(
                f"the result store of cluster {self._name!r} does not answer: {error}",
                next_step="make cluster-status",
            ) from error
