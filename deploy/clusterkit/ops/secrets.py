"""The passwords of a cluster: made once on the control machine, kept in one file that only its owner reads.

secrets = ensure(cluster.state_dir / "secrets.yml")
secrets.broker["worker"], secrets.results["worker"], secrets.flower["admin"], secrets.to_ansible()
"""

from __future__ import annotations

import secrets as randomness
import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from clusterkit.ops.vault import SecretFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Role = Literal["operator", "worker", "producer", "scheduler", "flower", "monitor"]
ResultRole = Literal["operator", "worker", "producer", "scheduler", "replication", "sentinel"]
FlowerRole = Literal["admin", "viewer"]

#: The broker's users: one for each kind of process or person, each with its own rights.
ROLES: Final[tuple[Role, ...]] = get_args(Role)
#: The result store's users; with the last two, stores copy from each other and Sentinel watches them.
RESULT_ROLES: Final[tuple[ResultRole, ...]] = get_args(ResultRole)
#: Who may look at Flower's pages: one may also act on the cluster, the other may not.
FLOWER_ROLES: Final[tuple[FlowerRole, ...]] = get_args(FlowerRole)

_COMMENT = """\
# The passwords of this cluster. Made once by `make cluster-up` and used until the cluster is destroyed:
# a password changed here takes effect at the next `make cluster-up`. Keep this file to yourself.
"""
_USERS: Final[Mapping[str, tuple[str, ...]]] = {
    "broker": ROLES,
    "results": RESULT_ROLES,
    "flower": FLOWER_ROLES,
}
#: Letters and digits only: a password stands in URLs, configuration files and Erlang terms unescaped.
_ALPHABET = string.ascii_letters + string.digits
#: 32 of 62 characters are 190 bits.
_LENGTH = 32


@dataclass(frozen=True)
class Secrets:
    """Every secret of one cluster; its ``repr`` shows none."""

    broker: Mapping[Role, str] = field(repr=False)
    """Passwords of the broker's users, by role."""
    results: Mapping[ResultRole, str] = field(repr=False)
    """Passwords of the result store's users, by role."""
    flower: Mapping[FlowerRole, str] = field(repr=False)
    """Passwords of the users of Flower's web pages, by name."""
    erlang_cookie: str = field(repr=False)
    """What broker nodes and their command line tools know each other by."""

    def to_ansible(self) -> dict[str, Any]:
        """Return the secrets as playbooks get them."""
        return {
            "broker": dict(self.broker),
            "results": dict(self.results),
            "flower": dict(self.flower),
            "erlang_cookie": self.erlang_cookie,
        }


def ensure(path: Path, vault_password_file: Path | None = None) -> Secrets:
    """Return the secrets in ``path``, making those that are not there yet.

    A new file gets mode 0600 in a directory of mode 0700. What the file holds is kept, so that a later
    version of the kit can add a user; the file is replaced in one step, and two runs at once agree.
    With a vault password (default: the file in ``$ANSIBLE_VAULT_PASSWORD_FILE``) it is encrypted.

    Raises:
        PreflightError: others may read the file, it is not what this function writes, or the vault's
            password is missing or wrong.
    """
    store = SecretFile(path, "a cluster's passwords", _COMMENT, vault_password_file)
    with store.opened() as file:
        complete = _filled_in(_of_today(file.content), store)
        file.keep(complete)
    return Secrets(
        broker={role: complete["broker"][role] for role in ROLES},
        results={role: complete["results"][role] for role in RESULT_ROLES},
        flower={role: complete["flower"][role] for role in FLOWER_ROLES},
        erlang_cookie=complete["erlang_cookie"],
    )


def _of_today(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``content`` with what was one password, before there were roles, in its place.

    Flower's becomes its administrator's. The result store's is forgotten: no role has all its rights.
    """
    upgraded = dict(content)
    if isinstance(content.get("flower"), str):
        upgraded["flower"] = {"admin": content["flower"]}
    if isinstance(content.get("results"), str):
        del upgraded["results"]
    return upgraded


def _filled_in(content: dict[str, Any], store: SecretFile) -> dict[str, Any]:
    groups = {name: content.get(name) or {} for name in _USERS}
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise store.damaged(f"{name} is not a mapping of users")
    complete = {
        **content,
        **{
            name: {**group, **{user: group.get(user) or _password() for user in _USERS[name]}}
            for name, group in groups.items()
        },
        "erlang_cookie": content.get("erlang_cookie") or _password(),
    }
    for name, value in (
        *((name, complete[name]) for name in complete if name not in _USERS),
        *_users(complete),
    ):
        if not isinstance(value, str):
            raise store.damaged(f"{name} is not text; put it in quotes")
    return complete


def _users(complete: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{group}.{user}", value) for group in _USERS for user, value in complete[group].items()]


def _password() -> str:
    return "".join(randomness.choice(_ALPHABET) for _ in range(_LENGTH))
