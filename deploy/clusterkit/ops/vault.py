"""Files that hold secrets: readable by their owner alone, replaced in one step, encrypted when asked to.

    with SecretFile(path, holds="a cluster's passwords").opened() as file:
        file.keep({**file.content, "new": "secret"})

Encryption is ansible-vault's: with ``$ANSIBLE_VAULT_PASSWORD_FILE`` set, `ansible-vault view` shows a file,
a plain file is encrypted when it is next opened, and an encrypted one is never made plain again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from clusterkit.ops.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: The environment variable that names the vault's password file; Ansible itself goes by it, too.
VAULT_VARIABLE: Final = "ANSIBLE_VAULT_PASSWORD_FILE"

#: What every encrypted file begins with.
ENCRYPTED: Final = b"$ANSIBLE_VAULT;"
_READABLE_BY_OTHERS = 0o077
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700


@dataclass(frozen=True)
class SecretFile:
    """A YAML file of secrets in a directory of its owner's.

    ``holds`` says in messages what it is; ``comment`` begins the file; ``password_file`` is a text file or
    a program that prints the vault's password (default: ``$ANSIBLE_VAULT_PASSWORD_FILE``).
    """

    path: Path
    holds: str
    comment: str = ""
    password_file: Path | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[OpenedFile]:
        """Give the file's content, while every other process that opens it waits.

        The directory is made if it is not there, and closed to others if it is open to them.

        Raises:
            PreflightError: others may read the file, it is not a mapping in YAML, or the vault's password
                is missing or wrong. The file is as it was.
        """
        vault = self._vault()
        with _locked(self.path.parent):
            stored = self._stored()
            encrypted = stored is not None and stored.startswith(ENCRYPTED)
            content = {} if stored is None else self._parsed(self._plain(stored, vault))
            yield OpenedFile(self, content, vault, to_encrypt=bool(vault) and not encrypted)

    def damaged(self, reason: str) -> PreflightError:
        """Return the error to raise when the content makes no sense; ``reason`` quotes nothing of it."""
        return PreflightError(
            f"{self.path} does not hold {self.holds}: {reason}",
            next_step="restore the file from a backup: the running cluster knows only what was in it",
        )

    def _vault(self) -> Vault | None:
        return Vault(self.password_file.expanduser()) if self.password_file else from_environment()

    def _stored(self) -> bytes | None:
        try:
            with self.path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if mode & _READABLE_BY_OTHERS:
                    raise PreflightError(
                        f"{self.path} has mode {mode:04o}: others on this machine may have read {self.holds}",
                        next_step=f"chmod 600 {self.path}  "
                        "(or remove the file before the first `make cluster-up`)",
                    )
                return file.read()
        except FileNotFoundError:
            return None

    def _plain(self, stored: bytes, vault: Vault | None) -> bytes:
        if not stored.startswith(ENCRYPTED):
            return stored
        if vault is None:
            raise PreflightError(
                f"{self.path} is encrypted, and no vault password file is set",
                next_step=f"export {VAULT_VARIABLE}=<the file it was encrypted with>",
            )
        return vault.decrypt(stored, self.path)

    def _parsed(self, plain: bytes) -> dict[str, Any]:
        try:
            content = yaml.safe_load(plain)
        except (yaml.YAMLError, UnicodeDecodeError):
            # Neither the parser's message nor its cause: both quote the file.
            raise self.damaged("it is not valid YAML") from None
        if content in (None, {}):
            raise self.damaged("it is empty")
        if not isinstance(content, dict):
            raise self.damaged("it is not a mapping")
        return content


@dataclass
class OpenedFile:
    """What a ``SecretFile`` has in it, while nobody else can change it."""

    file: SecretFile
    content: Mapping[str, Any] = field(repr=False)
    _vault: Vault | None
    to_encrypt: bool
    """Whether the file has to be written even if its content stays: it is plain, and may not be."""

    def keep(self, content: Mapping[str, Any]) -> None:
        """Make ``content`` what the file holds; one that holds it already is left alone."""
        if content == self.content and not self.to_encrypt:
            return
        text = (self.file.comment + yaml.safe_dump(dict(content), sort_keys=False)).encode()
        write_private(self.file.path, self._vault.encrypt(text) if self._vault else text)
        self.content, self.to_encrypt = content, False


@dataclass(frozen=True)
class Vault:
    """Ansible's vault with one password. Ansible is imported when it is needed: that is slow."""

    password_file: Path | None = None
    """A text file, or a program that prints the password; without one the password is ``typed``."""
    typed: str = field(default="", repr=False)

    def encrypt(self, plain: bytes) -> bytes:
        """Return ``plain`` as `ansible-vault` writes it."""
        encrypted: bytes = self._library.encrypt(plain)
        return encrypted

    def decrypt(self, encrypted: bytes, path: Path) -> bytes:
        """Return what is encrypted in the file ``path``.

        Raises:
            PreflightError: the password is another, or the file is damaged.
        """
        from ansible.errors import AnsibleError  # noqa: PLC0415

        library = self._library
        try:
            plain: bytes = library.decrypt(encrypted)
        except AnsibleError:
            # Not its words, nor its cause: they hold on to what was to be decrypted.
            with_what = f"the password in {self.password_file}" if self.password_file else "this password"
            raise PreflightError(
                f"{path} cannot be decrypted with {with_what}",
                next_step=f"set {VAULT_VARIABLE} to the file it was encrypted with; "
                "a damaged file has to come from a backup",
            ) from None
        return plain

    @cached_property
    def _library(self) -> Any:
        from ansible.errors import AnsibleError  # noqa: PLC0415
        from ansible.parsing.dataloader import DataLoader  # noqa: PLC0415
        from ansible.parsing.vault import VaultLib, VaultSecret, get_file_vault_secret  # noqa: PLC0415

        if not self.password_file:
            return VaultLib([("default", VaultSecret(self.typed.encode()))])
        try:
            secret = get_file_vault_secret(filename=str(self.password_file), loader=DataLoader())
            secret.load()
        except AnsibleError:
            raise PreflightError(
                f"{self.password_file} gives no vault password: it is not a file with a password, "
                "nor a program that prints one",
                next_step=f"{VAULT_VARIABLE} names the file; run it by hand if it is a program",
            ) from None
        return VaultLib([("default", secret)])


def from_environment() -> Vault | None:
    """Return the vault of the file that ``$ANSIBLE_VAULT_PASSWORD_FILE`` names; None when it names none."""
    name = os.environ.get(VAULT_VARIABLE)
    return Vault(Path(name).expanduser()) if name else None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, making the directory first; a second process waits."""
    directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) != _DIRECTORY_MODE:
            os.fchmod(handle, _DIRECTORY_MODE)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_private(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step, mode 0600; whoever reads it sees the old file or the new one.

    The directory's lock has to be held: the unfinished file has one name, so that what a killed process
    left behind is overwritten by the next one instead of lying about.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE), "wb") as file:
            os.fchmod(file.fileno(), _FILE_MODE)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
