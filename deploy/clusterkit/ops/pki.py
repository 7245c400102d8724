"""The certificates of a cluster: a private authority on the control machine, one certificate per host.

    pki = ensure(cluster.state_dir / "pki", {"h1": Identity(("h1.lab.internal", "h1"), ("198.18.0.1",))})
    pki.to_ansible(), pki.ca_path, pki.expires()

A host's certificate serves as both ends of a connection: broker nodes call each other. What is made is
kept in one file that is replaced in one step, so no crash leaves a key beside another key's certificate.

The authority itself is replaced in steps, each deployed to every host before the next, so that at any
time everybody trusts whatever certificate anybody shows:

    pki = rotate(directory, identities, ca=True)
    while pki.step != "settled":
        deploy(pki)
        pki = advance(directory, identities, pki)

The step reached is kept, and ``ensure`` stays in it: interrupted, the same lines go on where it was.

The authority is not limited to the cluster's names: a limit is set when it is made, and hosts added later
have addresses and short names of their own. Nothing but the cluster and its clients trusts it.
"""

from __future__ import annotations

import ipaddress
import secrets as randomness
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clusterkit.ops.errors import PreflightError
from clusterkit.ops.vault import SecretFile, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

#: What is under way. "settled": nothing. "trust": a new authority is trusted beside the one that issues.
#: "issue": the new one has issued all certificates, the old one is still trusted. "drop": it no longer is.
Step = Literal["settled", "trust", "issue", "drop"]

AUTHORITY_LIFETIME: Final = timedelta(days=10 * 365)
#: The longest that browsers took from public authorities in these years.
CERTIFICATE_LIFETIME: Final = timedelta(days=397)
#: A certificate that ends sooner is issued again.
RENEW_BEFORE: Final = timedelta(days=60)

#: Certificates begin this much before they are made: hosts' clocks may be behind.
_CLOCK_SKEW = timedelta(hours=1)
#: X.520's limit on a common name's length, in characters.
_LONGEST_COMMON_NAME = 64
_STATE_FILE, _CA_FILE = "pki.yml", "ca.pem"
_HOLDS = "a cluster's certificates"
_COMMENT = """\
# The certificate authority of this cluster, its hosts' certificates and all their private keys. Kept by
# `make cluster-up` and `make cluster-rotate`. Whoever reads it can pass for any host: keep it to yourself.
"""


@dataclass(frozen=True)
class Identity:
    """What a host's certificate vouches for: DNS names and IP addresses."""

    names: tuple[str, ...]
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, both in PEM; only an authority that issues no more has no key."""

    certificate: str
    key: str = field(default="", repr=False)

    @cached_property
    def parsed(self) -> x509.Certificate:
        """The certificate, to look into."""
        return x509.load_pem_x509_certificate(self.certificate.encode())

    @property
    def end(self) -> datetime:
        """The moment it ends."""
        return self.parsed.not_valid_after_utc

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the key, to sign with."""
        key = serialization.load_pem_private_key(self.key.encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("not a key on an elliptic curve")
        return key


@dataclass(frozen=True)
class Pki:
    """What a deployment needs: the authority to trust, each host's certificate and key, the step it is in."""

    ca: str
    """Certificates to trust, in PEM: one, or two while the authority is being replaced."""
    ca_path: Path
    """A file with ``ca``, for clients on the control machine."""
    hosts: Mapping[str, Certificate]
    step: Step
    """What has to be deployed to every host before ``advance``; "settled" when nothing is under way."""

    def to_ansible(self) -> dict[str, Any]:
        """Return authority, certificates and keys as playbooks get them."""
        return {
            "ca": self.ca,
            "hosts": {
                name: {"certificate": host.certificate, "key": host.key} for name, host in self.hosts.items()
            },
        }

    def expires(self) -> dict[str, datetime]:
        """Return, per host, when its certificate ends (UTC), which is never after its authority's end.

        Less than ``RENEW_BEFORE`` from now means that the authority itself is ending and has to be replaced.
        """
        return {name: host.end for name, host in self.hosts.items()}


def ensure(
    directory: Path,
    identities: Mapping[str, Identity],
    *,
    vault_password_file: Path | None = None,
    now: datetime | None = None,
) -> Pki:
    """Return the certificates in ``directory``, making what is missing, out of date or of other names.

    Files get mode 0600 in a directory of mode 0700; with a vault password (default: the file in
    ``$ANSIBLE_VAULT_PASSWORD_FILE``) the keys are encrypted. Certificates of hosts that are not in
    ``identities`` are forgotten; forgetting does not make them invalid, only a new authority does.

    Raises:
        PreflightError: the files are damaged or open to others, the authority has expired, or the vault's
            password is missing or wrong. Nothing was changed.
    """
    return _change(lambda state, _: state, directory, identities, vault_password_file, now)


def rotate(
    directory: Path,
    identities: Mapping[str, Identity],
    *,
    ca: bool = False,
    vault_password_file: Path | None = None,
    now: datetime | None = None,
) -> Pki:
    """Issue every host's certificate again, with a new key; or, with ``ca``, begin to replace the authority.

    A replacement that is under way is gone on with, not begun again. An expired authority is trusted by
    nobody: its replacement issues at once.

    Raises:
        PreflightError: as ``ensure``.
    """
    return _change(
        _authority_rotated if ca else _certificates_rotated, directory, identities, vault_password_file, now
    )


def advance(
    directory: Path,
    identities: Mapping[str, Identity],
    deployed: Pki,
    *,
    vault_password_file: Path | None = None,
    now: datetime | None = None,
) -> Pki:
    """Return the step after ``deployed``, which every host has by now.

    Where the files have moved on from ``deployed`` already, what they say is returned and nothing skipped.

    Raises:
        PreflightError: as ``ensure``.
    """

    def next_step(state: _State, _: datetime) -> _State:
        return state.next() if (state.step, state.bundle) == (deployed.step, deployed.ca) else state

    return _change(next_step, directory, identities, vault_password_file, now)


@dataclass(frozen=True)
class _State:
    """What the file holds: the authority that issues, the other one that is trusted with it, the hosts."""

    step: Step
    authority: Certificate
    other: Certificate | None = None
    """In step "trust" the next authority, in "issue" the previous one, without its key."""
    hosts: Mapping[str, Certificate] = field(default_factory=dict)

    @property
    def bundle(self) -> str:
        return self.authority.certificate + (self.other.certificate if self.other else "")

    def next(self) -> _State:
        """Return the state after this one: an old key is forgotten with its last certificate."""
        if self.step == "trust" and self.other:
            return _State("issue", self.other, Certificate(self.authority.certificate))
        return replace(self, step="drop" if self.step == "issue" else "settled", other=None)


def _certificates_rotated(state: _State, _: datetime) -> _State:
    return replace(state, hosts={})


def _authority_rotated(state: _State, now: datetime) -> _State:
    if state.step == "settled":
        state = replace(state, step="trust", other=_new_authority(now))
    if state.step == "trust" and state.authority.end <= now:
        state = state.next()
    return state


def _change(
    change: Callable[[_State, datetime], _State],
    directory: Path,
    identities: Mapping[str, Identity],
    vault_password_file: Path | None,
    now: datetime | None,
) -> Pki:
    """Read the state, change it, issue what hosts lack in it, keep it; alone, and all or nothing."""
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    store = SecretFile(directory / _STATE_FILE, _HOLDS, _COMMENT, vault_password_file)
    ca_path = directory / _CA_FILE
    with store.opened() as file:
        state = _read(file.content, store) if file.content else _first(store.path, ca_path, now)
        state = change(state, now)
        state = replace(state, hosts=_issued(state, identities, now, directory))
        file.keep(_to_yaml(state))
        if not ca_path.exists() or ca_path.read_bytes() != state.bundle.encode():
            write_private(ca_path, state.bundle.encode())
    return Pki(ca=state.bundle, ca_path=ca_path, hosts=state.hosts, step=state.step)


def _first(path: Path, ca_path: Path, now: datetime) -> _State:
    if ca_path.exists():
        raise PreflightError(
            f"{ca_path} is there, but {path} is not, which has the authority's key",
            next_step=f"restore {path} from a backup; or, if no host has certificates yet, remove {ca_path}",
        )
    return _State("settled", _new_authority(now))


def _to_yaml(state: _State) -> dict[str, Any]:
    return {
        "step": state.step,
        "authority": _entry(state.authority),
        "other": state.other and _entry(state.other),
        "hosts": {name: _entry(host) for name, host in state.hosts.items()},
    }


def _entry(certificate: Certificate) -> dict[str, str]:
    return {"certificate": certificate.certificate, "key": certificate.key}


def _read(content: Mapping[str, Any], store: SecretFile) -> _State:
    step: Any = content.get("step")
    other, hosts = content.get("other"), content.get("hosts")
    if step not in get_args(Step) or (other is not None) != (step in {"trust", "issue"}):
        raise store.damaged("its step is not one, or lacks an authority")
    if not isinstance(hosts, dict):
        raise store.damaged("hosts is not a mapping")
    return _State(
        step,
        _certificate(content.get("authority"), "the authority", store),
        None if other is None else _certificate(other, "the other authority", store, key=step == "trust"),
        {name: _certificate(entry, name, store) for name, entry in hosts.items()},
    )


def _certificate(entry: Any, name: str, store: SecretFile, *, key: bool = True) -> Certificate:
    """Return one certificate of the file; ``key`` says whether its key has to be there, too."""
    try:
        certificate = Certificate(entry["certificate"], entry["key"])
        public = certificate.parsed.public_key()
        fits = not key or certificate.private_key().public_key() == public
    except (LookupError, TypeError, AttributeError, ValueError, UnsupportedAlgorithm):
        # Not the library's words, nor the cause: they may quote the file.
        raise store.damaged(f"certificate or key of {name} cannot be read") from None
    if not fits:
        raise store.damaged(f"the key of {name} is not that of its certificate")
    return certificate


def _issued(
    state: _State, identities: Mapping[str, Identity], now: datetime, directory: Path
) -> dict[str, Certificate]:
    """Return the hosts' certificates: those that serve as they are, and new ones for the others."""
    if state.authority.end <= now:
        raise PreflightError(
            f"the certificate authority in {directory} expired on {state.authority.end:%Y-%m-%d}",
            next_step="make cluster-rotate AUTHORITY=1",
        )
    return {
        name: have
        if (have := state.hosts.get(name)) and _serves(have, identity, state.authority, now)
        else _issue(name, identity, state.authority, now)
        for name, identity in identities.items()
    }


def _serves(certificate: Certificate, identity: Identity, authority: Certificate, now: datetime) -> bool:
    try:
        certificate.parsed.verify_directly_issued_by(authority.parsed)
    except (ValueError, InvalidSignature):
        return False
    names = certificate.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names) == set(_names(identity)) and (
        certificate.end - now >= RENEW_BEFORE or certificate.end >= _end(authority, now)
    )


def _names(identity: Identity) -> list[x509.GeneralName]:
    return [
        *(x509.DNSName(name) for name in dict.fromkeys(identity.names)),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in dict.fromkeys(identity.addresses)),
    ]


def _end(authority: Certificate, now: datetime) -> datetime:
    return min(now + CERTIFICATE_LIFETIME, authority.end)


def _new_authority(now: datetime) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: with two authorities trusted, a verifier finds a certificate's issuer by name.
    name = _name(f"clusterkit authority {now:%Y-%m-%d} {randomness.token_hex(4)}")
    builder = (
        _builder(name, key.public_key(), now, now + AUTHORITY_LIFETIME)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return _signed(builder, key, key)


def _issue(name: str, identity: Identity, authority: Certificate, now: datetime) -> Certificate:
    key, issuer = ec.generate_private_key(ec.SECP256R1()), authority.parsed
    builder = (
        _builder(_name(name), key.public_key(), now, _end(authority, now))
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(_names(identity)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    return _signed(builder, key, authority.private_key())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_LONGEST_COMMON_NAME])])


def _builder(
    name: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Certificate:
    return Certificate(
        builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )
