"""Secrets are made once, kept, readable by their owner alone, and encrypted with a vault password."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from clusterkit.ops.errors import PreflightError
from clusterkit.ops.secrets import FLOWER_ROLES, RESULT_ROLES, ROLES, Secrets, ensure
from clusterkit.ops.vault import VAULT_VARIABLE


@pytest.fixture(autouse=True)
def no_vault_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VAULT_VARIABLE, raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".cluster" / "test" / "secrets.yml"


@pytest.fixture
def vault_password(tmp_path: Path) -> Path:
    file = tmp_path / "vault-password"
    file.write_text("open sesame\n")
    return file


def passwords(secrets: Secrets) -> list[str]:
    return [
        *secrets.broker.values(),
        *secrets.results.values(),
        *secrets.flower.values(),
        secrets.erlang_cookie,
    ]


def told(error: BaseException) -> str:
    """Everything that a person may come to see of ``error``."""
    return "".join(traceback.format_exception(error)) + repr(error)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_user_gets_a_password_of_its_own(path: Path) -> None:
    secrets = ensure(path)
    assert tuple(secrets.broker) == ROLES
    assert tuple(secrets.results) == RESULT_ROLES
    assert tuple(secrets.flower) == FLOWER_ROLES == ("admin", "viewer")
    everything = passwords(secrets)
    assert len(set(everything)) == len(everything) == 15
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", one) for one in everything)


def test_only_the_owner_can_read_them(path: Path) -> None:
    ensure(path)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


def test_a_directory_that_is_open_to_others_is_closed(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o755)
    ensure(path)
    assert mode(path.parent) == 0o700


def test_the_second_time_nothing_changes(path: Path) -> None:
    first, written = ensure(path), path.stat()
    assert ensure(path) == first
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_what_is_missing_is_added_and_the_rest_kept(path: Path) -> None:
    ensure(path)
    content = yaml.safe_load(path.read_text())
    del content["broker"]["monitor"], content["results"]["sentinel"], content["flower"]
    content["broker"]["auditor"] = "of-a-later-version"
    content["ca"] = "also"
    path.write_text(yaml.safe_dump(content))
    secrets = ensure(path)
    written = yaml.safe_load(path.read_text())
    assert secrets.broker["worker"] == content["broker"]["worker"]
    assert written["broker"]["monitor"] == secrets.broker["monitor"]
    assert written["results"] == {**content["results"], "sentinel": secrets.results["sentinel"]}
    assert written["flower"] == secrets.flower
    assert (written["broker"]["auditor"], written["ca"]) == ("of-a-later-version", "also")
    assert mode(path) == 0o600


def test_a_file_from_before_there_were_roles_is_upgraded(path: Path) -> None:
    before = ensure(path)
    content = yaml.safe_load(path.read_text()) | {"results": "of-all", "flower": "of-the-pages"}
    path.write_text(yaml.safe_dump(content))
    secrets = ensure(path)
    assert (secrets.broker, secrets.erlang_cookie) == (before.broker, before.erlang_cookie)
    assert secrets.flower["admin"] == "of-the-pages"
    assert secrets.flower["viewer"] not in {"of-the-pages", before.flower["viewer"]}
    assert tuple(secrets.results) == RESULT_ROLES
    assert "of-all" not in path.read_text()
    assert ensure(path) == secrets


@pytest.mark.parametrize("wide", [0o640, 0o604, 0o660, 0o620])
def test_a_file_that_others_may_read_is_refused_with_the_fix(path: Path, wide: int) -> None:
    ensure(path)
    path.chmod(wide)
    with pytest.raises(PreflightError, match=f"has mode 0{wide:o}") as caught:
        ensure(path)
    assert f"chmod 600 {path}" in caught.value.next_step


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("results: [half", "it is not valid YAML"),
        ("- results", "it is not a mapping"),
        ("", "it is empty"),
        ("broker: password", "broker is not a mapping of users"),
        ("broker: {worker: 12345}", "broker.worker is not text"),
        ("results: 12345", "results is not a mapping of users"),
        ("results: {worker: 12345}", "results.worker is not text"),
        ("flower: [12345]", "flower is not a mapping of users"),
        ("erlang_cookie: 12345", "erlang_cookie is not text"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(path: Path, content: str, reason: str) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(PreflightError, match=reason) as caught:
        ensure(path)
    assert path.read_text() == content
    assert "12345" not in told(caught.value)
    assert "backup" in caught.value.next_step


def test_nothing_half_written_stays_when_writing_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure(path)
    assert list(path.parent.iterdir()) == []


def test_two_runs_at_once_agree(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: ensure(path), range(8)))
    assert all(result == results[0] for result in results)


def test_two_processes_at_once_agree(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from clusterkit.ops.secrets import ensure\n"
        "print(ensure(Path(sys.argv[1])).to_ansible())"
    )
    command = [sys.executable, "-c", program, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1
    assert [process.returncode for process in running] == [0, 0]


def test_what_a_killed_process_left_behind_is_used_up(path: Path) -> None:
    path.parent.mkdir(parents=True)
    (path.parent / ".secrets.yml.part").write_text("half a passw")
    ensure(path)
    assert list(path.parent.iterdir()) == [path]
    assert mode(path) == 0o600


def test_a_secret_is_not_shown_by_accident(path: Path) -> None:
    secrets = ensure(path)
    shown = repr(secrets) + str(secrets)
    assert not [one for one in passwords(secrets) if one in shown]


def test_playbooks_get_them_as_plain_values(path: Path) -> None:
    secrets = ensure(path)
    assert secrets.to_ansible() == {
        "broker": dict(secrets.broker),
        "results": dict(secrets.results),
        "flower": dict(secrets.flower),
        "erlang_cookie": secrets.erlang_cookie,
    }


def test_with_a_vault_password_the_file_is_encrypted(path: Path, vault_password: Path) -> None:
    secrets = ensure(path, vault_password)
    assert path.read_bytes().startswith(b"$ANSIBLE_VAULT;1.1;AES256")
    assert mode(path) == 0o600
    written = path.stat()
    assert ensure(path, vault_password) == secrets
    assert path.stat().st_ino == written.st_ino


def test_the_environment_names_the_vaults_password_file_too(
    path: Path, vault_password: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VAULT_VARIABLE, str(vault_password))
    secrets = ensure(path)
    monkeypatch.delenv(VAULT_VARIABLE)
    assert ensure(path, vault_password) == secrets


def test_a_program_may_print_the_vaults_password(path: Path, vault_password: Path) -> None:
    secrets = ensure(path, vault_password)
    program = vault_password.with_name("print-password")
    program.write_text(f"#!/bin/sh\ncat {vault_password}\n")
    program.chmod(0o700)
    assert ensure(path, program) == secrets


def test_ansible_vault_reads_what_was_encrypted(path: Path, vault_password: Path) -> None:
    secrets = ensure(path, vault_password)
    shown = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-vault")), "view", str(path)],
        env={**os.environ, VAULT_VARIABLE: str(vault_password)},
        capture_output=True,
        check=True,
    ).stdout
    assert yaml.safe_load(shown) == secrets.to_ansible()


def test_a_plain_file_is_encrypted_at_the_next_run(path: Path, vault_password: Path) -> None:
    secrets = ensure(path)
    assert secrets.erlang_cookie in path.read_text()
    assert ensure(path, vault_password) == secrets
    assert path.read_bytes().startswith(b"$ANSIBLE_VAULT;")


def test_an_encrypted_file_without_the_password_is_left_alone(path: Path, vault_password: Path) -> None:
    ensure(path, vault_password)
    before = path.read_bytes()
    with pytest.raises(PreflightError, match="is encrypted, and no vault password file is set") as caught:
        ensure(path)
    assert VAULT_VARIABLE in caught.value.next_step
    assert path.read_bytes() == before


def test_a_wrong_vault_password_is_told_without_a_word_of_it(path: Path, vault_password: Path) -> None:
    ensure(path, vault_password)
    before = path.read_bytes()
    vault_password.write_text("open barley\n")
    with pytest.raises(PreflightError, match="cannot be decrypted with the password in") as caught:
        ensure(path, vault_password)
    assert VAULT_VARIABLE in caught.value.next_step
    assert "barley" not in told(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [30, 200, -2])
def test_a_damaged_encrypted_file_is_refused_and_left_alone(
    path: Path, vault_password: Path, cut: int
) -> None:
    ensure(path, vault_password)
    path.write_bytes(path.read_bytes()[:cut])
    before = path.read_bytes()
    with pytest.raises(PreflightError, match="cannot be decrypted") as caught:
        ensure(path, vault_password)
    assert "backup" in caught.value.next_step
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [None, "", "#!/bin/false\n"])
def test_a_file_that_gives_no_vault_password_is_told(
    path: Path, vault_password: Path, content: str | None
) -> None:
    ensure(path)
    before = path.read_bytes()
    vault_password.unlink() if content is None else vault_password.write_text(content)
    if content:
        vault_password.chmod(0o700)
    with pytest.raises(PreflightError, match="gives no vault password") as caught:
        ensure(path, vault_password)
    assert VAULT_VARIABLE in caught.value.next_step
    assert path.read_bytes() == before
