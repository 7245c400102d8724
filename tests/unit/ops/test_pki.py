"""Every host gets a certificate that others accept, and goes on being accepted while anything is replaced."""

from __future__ import annotations

import itertools
import signal
import ssl
import stat
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from clusterkit.ops.errors import PreflightError
from clusterkit.ops.pki import (
    AUTHORITY_LIFETIME,
    CERTIFICATE_LIFETIME,
    RENEW_BEFORE,
    Identity,
    Pki,
    Step,
    advance,
    ensure,
    rotate,
)
from clusterkit.ops.vault import VAULT_VARIABLE

#: openssl knows no other time than today's.
NOW: Final = datetime.now(UTC).replace(microsecond=0)
DAY: Final = timedelta(days=1)
IDENTITIES: Final = {
    "h1": Identity(("h1.lab.internal", "h1", "brokers.lab.internal"), ("198.18.0.1",)),
    "h2": Identity(("h2.lab.internal", "h2", "brokers.lab.internal"), ("198.18.0.2", "2001:db8::2")),
}


@pytest.fixture(autouse=True)
def no_vault_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VAULT_VARIABLE, raising=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / ".cluster" / "lab" / "pki"


@pytest.fixture
def vault_password(tmp_path: Path) -> Path:
    file = tmp_path / "vault-password"
    file.write_text("open sesame\n")
    return file


def state(directory: Path) -> Path:
    return directory / "pki.yml"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def certificate(pki: Pki, host: str = "h1") -> x509.Certificate:
    return x509.load_pem_x509_certificate(pki.hosts[host].certificate.encode())


def authorities(pki: Pki) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pki.ca.encode())


def openssl(*arguments: str | Path, text: str = "") -> str:
    return subprocess.run(
        ["openssl", *map(str, arguments)], input=text, capture_output=True, text=True, check=True
    ).stdout


def context(pki: Pki, host: str, protocol: ssl._SSLMethod, scratch: Path) -> ssl.SSLContext:
    """What ``host`` talks with: its certificate, and trust in the authority of ``pki`` alone."""
    pair = scratch / f"{host}.pem"
    pair.write_text(pki.hosts[host].certificate + pki.hosts[host].key)
    made = ssl.SSLContext(protocol)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT  # the default of Python 3.13
    made.load_cert_chain(pair)
    made.load_verify_locations(cadata=pki.ca)
    return made


def shake_hands(client: Pki, server: Pki, name: str, scratch: Path) -> None:
    """Connect h2 as client to h1 as server, known by ``name``; each proves who it is."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        context(client, "h2", ssl.PROTOCOL_TLS_CLIENT, scratch).wrap_bio(
            to_client, to_server, server_hostname=name
        ),
        context(server, "h1", ssl.PROTOCOL_TLS_SERVER, scratch).wrap_bio(
            to_server, to_client, server_side=True
        ),
    ]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue


def replaced_authority(directory: Path) -> list[Pki]:
    """What is deployed, one after the other, when the authority is replaced."""
    deployed = [ensure(directory, IDENTITIES), rotate(directory, IDENTITIES, ca=True)]
    while deployed[-1].step != "settled":
        deployed.append(advance(directory, IDENTITIES, deployed[-1]))
    return deployed


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
@pytest.mark.parametrize("host", IDENTITIES)
def test_openssl_accepts_each_certificate_for_both_ends_and_all_its_names(
    directory: Path, host: str, purpose: str
) -> None:
    pki = ensure(directory, IDENTITIES)
    file = directory / f"{host}.crt"
    file.write_text(pki.hosts[host].certificate)
    for option, names in (
        ("-verify_hostname", IDENTITIES[host].names),
        ("-verify_ip", IDENTITIES[host].addresses),
    ):
        for name in names:
            openssl("verify", "-x509_strict", "-purpose", purpose, "-CAfile", pki.ca_path, option, name, file)


def test_a_certificate_is_not_taken_for_another_host_nor_for_an_authority(directory: Path) -> None:
    pki = ensure(directory, IDENTITIES)
    file = directory / "h1.crt"
    file.write_text(pki.hosts["h1"].certificate)
    for option in (("-verify_hostname", "h2.lab.internal"), ("-verify_ip", "198.18.0.2")):
        with pytest.raises(subprocess.CalledProcessError):
            openssl("verify", "-CAfile", pki.ca_path, *option, file)
    basic = certificate(pki).extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)


def test_key_and_certificate_belong_together(directory: Path) -> None:
    pki = ensure(directory, IDENTITIES)
    for host in pki.hosts.values():
        of_key = openssl("pkey", "-pubout", text=host.key)
        assert of_key == openssl("x509", "-noout", "-pubkey", text=host.certificate)


def test_the_authority_lasts_ten_years_and_signs_hosts_alone(directory: Path) -> None:
    (authority,) = authorities(ensure(directory, IDENTITIES, now=NOW))
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    key = authority.public_key()
    assert authority.not_valid_after_utc == NOW + AUTHORITY_LIFETIME
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"


def test_a_certificate_lasts_397_days_and_says_so(directory: Path) -> None:
    pki = ensure(directory, IDENTITIES, now=NOW)
    assert pki.expires() == dict.fromkeys(IDENTITIES, NOW + 397 * DAY)
    assert certificate(pki).not_valid_before_utc < NOW


def test_only_the_owner_can_read_any_of_it(directory: Path) -> None:
    pki = ensure(directory, IDENTITIES)
    assert mode(directory) == 0o700
    assert {file.name: mode(file) for file in directory.iterdir()} == {"pki.yml": 0o600, "ca.pem": 0o600}
    assert pki.ca_path.read_text() == pki.ca


def test_a_directory_that_is_open_to_others_is_closed(directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o755)
    ensure(directory, IDENTITIES)
    assert mode(directory) == 0o700


def test_the_second_time_nothing_changes(directory: Path) -> None:
    first = ensure(directory, IDENTITIES)
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in directory.iterdir()]
    assert ensure(directory, IDENTITIES) == first
    assert [(file.stat().st_ino, file.stat().st_mtime_ns) for file in directory.iterdir()] == before


def test_playbooks_get_text_alone(directory: Path) -> None:
    pki = ensure(directory, IDENTITIES)
    assert pki.to_ansible() == {
        "ca": pki.ca,
        "hosts": {
            name: {"certificate": host.certificate, "key": host.key} for name, host in pki.hosts.items()
        },
    }


def test_a_key_is_not_shown_by_accident(directory: Path) -> None:
    pki = ensure(directory, IDENTITIES)
    assert "PRIVATE KEY" not in repr(pki) + str(pki) + repr(pki.hosts["h1"])


@pytest.mark.parametrize(
    "identity",
    [
        Identity((*IDENTITIES["h1"].names, "results.lab.internal"), IDENTITIES["h1"].addresses),
        Identity(IDENTITIES["h1"].names[1:], IDENTITIES["h1"].addresses),
        Identity(IDENTITIES["h1"].names, ("198.18.0.9",)),
        Identity(IDENTITIES["h1"].names),
    ],
)
def test_a_host_of_other_names_or_addresses_gets_another_certificate(
    directory: Path, identity: Identity
) -> None:
    before = ensure(directory, IDENTITIES)
    after = ensure(directory, IDENTITIES | {"h1": identity})
    assert after.hosts["h1"].certificate != before.hosts["h1"].certificate
    assert after.hosts["h1"].key != before.hosts["h1"].key
    assert (after.hosts["h2"], after.ca) == (before.hosts["h2"], before.ca)


def test_the_order_of_names_and_names_said_twice_change_nothing(directory: Path) -> None:
    before = ensure(directory, IDENTITIES)
    names = IDENTITIES["h1"].names
    again = Identity((*reversed(names), names[0]), IDENTITIES["h1"].addresses)
    assert ensure(directory, IDENTITIES | {"h1": again}) == before


def test_a_host_added_gets_a_certificate_and_a_host_removed_is_forgotten(directory: Path) -> None:
    before = ensure(directory, IDENTITIES)
    after = ensure(directory, {"h2": IDENTITIES["h2"], "h3": Identity(("h3.lab.internal",))})
    assert list(after.hosts) == ["h2", "h3"]
    assert after.hosts["h2"] == before.hosts["h2"]
    assert list(yaml.safe_load(state(directory).read_text())["hosts"]) == ["h2", "h3"]


def test_a_name_longer_than_a_subject_may_be_is_still_vouched_for(directory: Path) -> None:
    name = "h" * 63 + ".lab.internal"
    pki = ensure(directory, {name: Identity((name,))})
    assert pki.hosts[name] == ensure(directory, {name: Identity((name,))}).hosts[name]


@pytest.mark.parametrize(("left", "again"), [(60 * DAY, False), (59 * DAY, True), (-DAY, True)])
def test_a_certificate_is_issued_again_when_less_than_60_days_are_left(
    directory: Path, left: timedelta, again: bool
) -> None:
    before = ensure(directory, IDENTITIES, now=NOW)
    later = NOW + CERTIFICATE_LIFETIME - left
    after = ensure(directory, IDENTITIES, now=later)
    assert (after.hosts["h1"] != before.hosts["h1"]) is again
    assert after.ca == before.ca
    assert min(after.expires().values()) - later >= RENEW_BEFORE


def test_no_certificate_outlives_its_authority_and_none_is_issued_for_nothing(directory: Path) -> None:
    end = certificate_end = NOW + AUTHORITY_LIFETIME
    ensure(directory, IDENTITIES, now=NOW)
    last = ensure(directory, IDENTITIES, now=end - 30 * DAY)
    assert last.expires() == dict.fromkeys(IDENTITIES, certificate_end)
    assert ensure(directory, IDENTITIES, now=end - 29 * DAY) == last


def test_an_expired_authority_is_told_with_the_way_out(directory: Path) -> None:
    ensure(directory, IDENTITIES, now=NOW)
    later = NOW + AUTHORITY_LIFETIME + DAY
    with pytest.raises(PreflightError, match=r"expired on \d{4}-\d\d-\d\d") as caught:
        ensure(directory, IDENTITIES, now=later)
    assert "make cluster-rotate" in caught.value.next_step
    replaced = rotate(directory, IDENTITIES, ca=True, now=later)
    assert replaced.step == "issue"
    assert min(replaced.expires().values()) == later + CERTIFICATE_LIFETIME


def test_rotation_issues_every_certificate_again_with_a_new_key(directory: Path) -> None:
    before = ensure(directory, IDENTITIES)
    after = rotate(directory, IDENTITIES)
    assert (after.ca, after.step) == (before.ca, "settled")
    for name in IDENTITIES:
        assert after.hosts[name].key != before.hosts[name].key
        assert certificate(after, name).serial_number != certificate(before, name).serial_number
    assert ensure(directory, IDENTITIES) == after


def test_an_authority_is_replaced_by_trust_then_issue_then_drop(directory: Path) -> None:
    settled, trust, issue, drop, after = replaced_authority(directory)
    (old,) = authorities(settled)
    first, new = authorities(trust)
    assert [pki.step for pki in (trust, issue, drop, after)] == ["trust", "issue", "drop", "settled"]
    assert first == old
    assert trust.hosts == settled.hosts
    assert authorities(issue) == [new, old]
    assert not set(issue.hosts.values()) & set(settled.hosts.values())
    certificate(issue).verify_directly_issued_by(new)
    assert authorities(drop) == authorities(after) == [new]
    assert drop.hosts == issue.hosts == after.hosts
    assert new.subject != old.subject


def test_hosts_accept_each_other_before_and_after_each_step(directory: Path, tmp_path: Path) -> None:
    for before, after in itertools.pairwise(replaced_authority(directory)):
        for client, server in itertools.product([before, after], repeat=2):
            for name in ("h1.lab.internal", "brokers.lab.internal", "198.18.0.1"):
                shake_hands(client, server, name, tmp_path)


def test_without_the_steps_between_hosts_would_not_accept_each_other(directory: Path, tmp_path: Path) -> None:
    settled, _, issue, drop, _ = replaced_authority(directory)
    for client, server in ((settled, issue), (drop, settled)):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(client, server, "h1.lab.internal", tmp_path)


def test_a_client_of_the_control_machine_has_the_bundle_in_a_file(directory: Path) -> None:
    ensure(directory, IDENTITIES)
    pki = rotate(directory, IDENTITIES, ca=True)
    while True:
        assert pki.ca_path.read_text() == pki.ca
        if pki.step == "settled":
            break
        pki = advance(directory, IDENTITIES, pki)


@pytest.mark.parametrize(("steps", "expected"), [(0, "trust"), (1, "issue"), (2, "drop")])
def test_an_interrupted_replacement_goes_on_where_it_was(directory: Path, steps: int, expected: Step) -> None:
    ensure(directory, IDENTITIES)
    pki = rotate(directory, IDENTITIES, ca=True)
    for _ in range(steps):
        pki = advance(directory, IDENTITIES, pki)
    assert pki.step == expected
    assert ensure(directory, IDENTITIES) == pki
    assert rotate(directory, IDENTITIES, ca=True) == pki


def test_a_step_that_was_not_deployed_is_not_skipped(directory: Path) -> None:
    settled = ensure(directory, IDENTITIES)
    trust = rotate(directory, IDENTITIES, ca=True)
    assert advance(directory, IDENTITIES, settled) == trust
    issue = advance(directory, IDENTITIES, trust)
    assert advance(directory, IDENTITIES, trust) == issue


def test_nothing_under_way_is_nothing_to_advance(directory: Path) -> None:
    pki = ensure(directory, IDENTITIES)
    assert advance(directory, IDENTITIES, pki) == pki


@pytest.mark.parametrize("steps", [0, 1])
def test_a_host_may_be_added_while_the_authority_is_replaced(
    directory: Path, tmp_path: Path, steps: int
) -> None:
    ensure(directory, {"h2": IDENTITIES["h2"]})
    pki = rotate(directory, {"h2": IDENTITIES["h2"]}, ca=True)
    for _ in range(steps):
        pki = advance(directory, {"h2": IDENTITIES["h2"]}, pki)
    grown = ensure(directory, IDENTITIES)
    assert (grown.step, grown.ca, grown.hosts["h2"]) == (pki.step, pki.ca, pki.hosts["h2"])
    shake_hands(grown, grown, "h1.lab.internal", tmp_path)


def test_the_old_authoritys_key_is_gone_when_the_new_one_has_issued(directory: Path) -> None:
    ensure(directory, IDENTITIES)
    trust = rotate(directory, IDENTITIES, ca=True)
    old = yaml.safe_load(state(directory).read_text())["authority"]["key"]
    advance(directory, IDENTITIES, trust)
    content = yaml.safe_load(state(directory).read_text())
    assert content["other"]["key"] == ""
    assert old.split("\n")[1] not in state(directory).read_text()


def test_a_file_that_others_may_read_is_refused_with_the_fix(directory: Path) -> None:
    ensure(directory, IDENTITIES)
    state(directory).chmod(0o640)
    with pytest.raises(PreflightError, match="has mode 0640") as caught:
        ensure(directory, IDENTITIES)
    assert f"chmod 600 {state(directory)}" in caught.value.next_step


def swap_keys(content: dict[str, Any]) -> None:
    hosts = content["hosts"]
    hosts["h1"]["key"], hosts["h2"]["key"] = hosts["h2"]["key"], hosts["h1"]["key"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (swap_keys, "the key of h1 is not that of its certificate"),
        (lambda content: content["hosts"]["h2"].pop("key"), "certificate or key of h2 cannot be read"),
        (lambda content: content["hosts"].update(h1="text"), "certificate or key of h1 cannot be read"),
        (lambda content: content.update(authority=None), "certificate or key of the authority cannot"),
        (
            lambda content: content["authority"].update(key=content["authority"]["key"][:-60]),
            "certificate or key of the authority cannot be read",
        ),
        (
            lambda content: content["hosts"]["h1"].update(certificate="-----BEGIN CERTIFICATE-----"),
            "certificate or key of h1 cannot be read",
        ),
        (lambda content: content.update(hosts=[]), "hosts is not a mapping"),
        (lambda content: content.update(step="trust"), "its step is not one, or lacks an authority"),
        (lambda content: content.update(step="later"), "its step is not one, or lacks an authority"),
        (lambda content: content.clear(), "it is empty"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(directory: Path, damage: Any, reason: str) -> None:
    ensure(directory, IDENTITIES)
    content = yaml.safe_load(state(directory).read_text())
    keys = [content["authority"]["key"], *(host["key"] for host in content["hosts"].values())]
    damage(content)
    state(directory).write_text(yaml.safe_dump(content))
    before = {file: file.read_bytes() for file in directory.iterdir()}
    with pytest.raises(PreflightError, match=reason) as caught:
        rotate(directory, IDENTITIES, ca=True)
    assert "backup" in caught.value.next_step
    assert {file: file.read_bytes() for file in directory.iterdir()} == before
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert not [line for key in keys for line in key.split("\n")[1:-2] if line in told]


@pytest.mark.parametrize("content", ["", "step: [half", "- step"])
def test_a_file_that_is_not_ours_is_refused_and_left_alone(directory: Path, content: str) -> None:
    ensure(directory, IDENTITIES)
    state(directory).write_text(content)
    with pytest.raises(PreflightError, match="does not hold a cluster's certificates"):
        ensure(directory, IDENTITIES)
    assert state(directory).read_text() == content


def test_an_authority_whose_key_is_lost_is_not_made_anew_behind_the_clusters_back(directory: Path) -> None:
    pki = ensure(directory, IDENTITIES)
    state(directory).unlink()
    with pytest.raises(PreflightError, match="which has the authority's key") as caught:
        ensure(directory, IDENTITIES)
    assert "backup" in caught.value.next_step
    assert list(directory.iterdir()) == [pki.ca_path]


def test_the_file_for_clients_is_written_again_when_it_is_lost_or_other(directory: Path) -> None:
    pki = ensure(directory, IDENTITIES)
    pki.ca_path.unlink()
    assert ensure(directory, IDENTITIES).ca_path.read_text() == pki.ca
    pki.ca_path.write_text("other")
    assert ensure(directory, IDENTITIES).ca_path.read_text() == pki.ca


def test_when_writing_fails_all_is_as_before(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ensure(directory, IDENTITIES)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", fail)
        for ca in (False, True):
            with pytest.raises(OSError, match="disk full"):
                rotate(directory, IDENTITIES, ca=ca)
    assert sorted(file.name for file in directory.iterdir()) == ["ca.pem", "pki.yml"]
    assert ensure(directory, IDENTITIES) == before


KILLED: Final = """
import sys
from pathlib import Path
from clusterkit.ops.pki import Identity, advance, ensure, rotate

cluster = Path(sys.argv[1]), {"h1": Identity(("h1.lab.internal",)), "h2": Identity(("h2",))}
pki = ensure(*cluster)
while True:
    print(pki.step, flush=True)
    pki = rotate(*cluster, ca=True) if pki.step == "settled" else advance(*cluster, pki)
"""


def test_a_kill_at_any_moment_leaves_certificates_with_their_keys(directory: Path, tmp_path: Path) -> None:
    for steps in range(1, 6):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(directory)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            last = [process.stdout.readline() for _ in range(steps)][-1]
            process.send_signal(signal.SIGKILL)
        assert last.strip() in {"settled", "trust", "issue", "drop"}
        # What ensure() reads has passed its check that each key is its certificate's.
        pki = ensure(directory, {"h1": Identity(("h1.lab.internal",)), "h2": Identity(("h2",))})
        assert pki.ca_path.read_text() == pki.ca
        shake_hands(pki, pki, "h1.lab.internal", tmp_path)
        assert sorted(file.name for file in directory.iterdir())[-2:] == ["ca.pem", "pki.yml"]


def test_two_runs_at_once_agree(directory: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ensure(directory, IDENTITIES), range(8)))
    assert all(pki == made[0] for pki in made)


def test_two_processes_at_once_agree(directory: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from clusterkit.ops.pki import Identity, ensure\n"
        "print(ensure(Path(sys.argv[1]), {'h1': Identity(('h1.lab.internal',))}).to_ansible())"
    )
    command = [sys.executable, "-c", program, str(directory)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1
    assert [process.returncode for process in running] == [0, 0]


def test_with_a_vault_password_the_keys_are_encrypted(directory: Path, vault_password: Path) -> None:
    plain = ensure(directory, IDENTITIES)
    encrypted = ensure(directory, IDENTITIES, vault_password_file=vault_password)
    assert encrypted == plain
    assert state(directory).read_bytes().startswith(b"$ANSIBLE_VAULT;")
    assert encrypted.ca_path.read_text() == plain.ca
    trust = rotate(directory, IDENTITIES, ca=True, vault_password_file=vault_password)
    issue = advance(directory, IDENTITIES, trust, vault_password_file=vault_password)
    assert issue.step == "issue"
    assert state(directory).read_bytes().startswith(b"$ANSIBLE_VAULT;")


def test_encrypted_keys_are_not_read_nor_replaced_without_the_password(
    directory: Path, vault_password: Path
) -> None:
    ensure(directory, IDENTITIES, vault_password_file=vault_password)
    before = state(directory).read_bytes()
    with pytest.raises(PreflightError, match="is encrypted") as caught:
        rotate(directory, IDENTITIES)
    assert VAULT_VARIABLE in caught.value.next_step
    vault_password.write_text("open barley\n")
    with pytest.raises(PreflightError, match="cannot be decrypted"):
        rotate(directory, IDENTITIES, vault_password_file=vault_password)
    assert state(directory).read_bytes() == before
