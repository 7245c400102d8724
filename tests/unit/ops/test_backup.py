"""A backup's file: encrypted, checked whole before anything is changed, and never over what is there."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clusterkit.ops import backup
from clusterkit.ops.errors import PreflightError
from clusterkit.ops.schedule import Entry
from clusterkit.ops.vault import Vault
from clusterkit.runtime.errors import BadInputError

from .conftest import Inventory

VAULT = Vault(typed="of the backup")
BACKUP = backup.Backup(
    cluster="test",
    made=datetime(2026, 1, 2, tzinfo=UTC),
    inventory={"hosts.yml": b"brokers: {}\n", "group_vars/all.yml": b"# \xff\n"},
    state={"secrets.yml": b"broker: {worker: secret}\n", "pki/pki.yml": b"ca: {}\n"},
    definitions={"queues": []},
    schedule=(Entry("nightly", {"definition": "{}"}, 12.5),),
    modes={"hosts.yml": 0o644},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "test.backup"
    path.write_bytes(VAULT.encrypt(BACKUP.to_bytes()))
    return path


def test_it_holds_what_was_put_in_and_shows_nothing_of_it(file: Path) -> None:
    assert backup.read(file, VAULT) == BACKUP
    assert b"secret" not in file.read_bytes()
    assert "secret" not in repr(BACKUP)


def test_another_password_and_a_damaged_file_are_refused(file: Path) -> None:
    with pytest.raises(PreflightError, match="cannot be decrypted with this password"):
        backup.read(file, Vault(typed="another"))
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(PreflightError, match="cannot be decrypted"):
        backup.read(file, VAULT)


@pytest.mark.parametrize(
    "content", [b"{}", b"text", b'{"format": "clusterkit backup 9"}', b'{"format": "clusterkit backup 1"}']
)
def test_other_encrypted_files_are_refused(content: bytes, file: Path) -> None:
    file.write_bytes(VAULT.encrypt(content))
    with pytest.raises(BadInputError, match="is no backup of a cluster"):
        backup.read(file, VAULT)
    file.write_bytes(content)
    with pytest.raises(BadInputError, match="is no backup of a cluster"):
        backup.read(file, VAULT)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd"])
def test_no_file_leaves_its_directory(name: str, file: Path) -> None:
    evil = backup.Backup(**{**vars(BACKUP), "inventory": {name: b""}})
    file.write_bytes(VAULT.encrypt(evil.to_bytes()))
    with pytest.raises(BadInputError, match="leads out of its directory"):
        backup.read(file, VAULT)


def test_files_of_the_inventory_get_the_permissions_they_had_and_are_private_without(
    inventory: Inventory, tmp_path: Path
) -> None:
    there, cluster = tmp_path / "elsewhere" / "test", inventory.load()
    there.mkdir(parents=True)
    (there / "hosts.yml").write_text("other")
    aside = backup.put_in_place(BACKUP, cluster, there, keep_inventory=False)
    assert aside
    assert (aside / "inventory" / "hosts.yml").read_text() == "other"
    modes = {name: (there / name).stat().st_mode & 0o777 for name in BACKUP.inventory}
    assert modes == {"hosts.yml": 0o644, "group_vars/all.yml": 0o600}


def test_an_inventory_is_checked_below_the_state_and_nothing_of_it_stays(inventory: Inventory) -> None:
    files = backup._files(inventory.directory)
    found = backup.loaded(backup.Backup(**{**vars(BACKUP), "inventory": files}), inventory.root)
    assert found.directory.is_relative_to(inventory.root / ".cluster")
    assert list((inventory.root / ".cluster").iterdir()) == []


def test_a_backup_from_before_permissions_were_kept_is_read() -> None:
    content = json.loads(BACKUP.to_bytes())
    del content["modes"]
    assert backup.Backup.from_bytes(json.dumps(content).encode(), Path("old")).modes == {}


def test_what_is_there_and_other_than_in_the_backup_is_named(tmp_path: Path) -> None:
    directory, state = tmp_path / "test", tmp_path / "state"
    assert backup.in_the_way(BACKUP, directory, state) == []
    for base, files in ((directory, BACKUP.inventory), (state, BACKUP.state)):
        for name, content in files.items():
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).write_bytes(content)
    assert backup.in_the_way(BACKUP, directory, state) == []
    (state / "pki/pki.yml").write_bytes(b"newer")
    assert backup.in_the_way(BACKUP, directory, state) == [], "the same cluster's newer certificates stay"
    (state / "secrets.yml").write_bytes(b"other: {}\n")
    (directory / "hosts.yml").write_bytes(b"other: {}\n")
    assert backup.in_the_way(BACKUP, directory, state) == [directory, state / "secrets.yml", state / "pki"]
    kept = backup.in_the_way(BACKUP, directory, state, keep_inventory=True)
    assert kept == [state / "secrets.yml", state / "pki"]
