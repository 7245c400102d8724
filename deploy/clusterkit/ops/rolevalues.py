"""What an Ansible role would write and run on a host, worked out without a host.

Containers get the files, environment and commands of the roles this way, so that nothing about a service
is written twice. A role's variables are its defaults, its own, and what its play in ``ansible/playbooks``
gives it, and Ansible itself fills in the templates.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, Final

from clusterkit.ops.errors import DeployError

if TYPE_CHECKING:
    from pathlib import Path

    from ansible.parsing.dataloader import DataLoader

#: Where a deployment's plays are.
_PLAYBOOKS: Final = ("servers.yml", "workers.yml", "frontends.yml")
#: Keys of a role in a play that are no variables of the role.
_KEYWORDS: Final = frozenset({"role", "tags", "when"})


class RoleValues:
    """The roles of a checkout with what a deployment gives all of them (``variables``)."""

    def __init__(self, root: Path, variables: dict[str, Any]) -> None:
        self._roles = root / "ansible" / "roles"
        self._playbooks = root / "ansible" / "playbooks"
        self._variables = variables
        self._loader = _loader(root / "ansible" / "ansible.cfg")
        self._files: dict[Path, Any] = {}

    def value(self, role: str, expression: str, host: str, **own: Any) -> Any:
        """Return what ``expression``, such as ``{{ __valkey_files }}``, is for ``role`` on ``host``.

        ``own`` replaces variables of the role; a text in it may be a template.

        Raises:
            DeployError: the role needs a variable that is not there, or a template is wrong.
        """
        from ansible.errors import AnsibleError  # noqa: PLC0415 - a third of a second
        from ansible.template import Templar, trust_as_template  # noqa: PLC0415

        folder = self._roles / role
        variables = {
            **self._read(folder / "defaults" / "main.yml"),
            **self._variables,
            **self._read(folder / "vars" / "main.yml"),
            **self._given(role),
            **{key: trust_as_template(text) if isinstance(text, str) else text for key, text in own.items()},
            "inventory_hostname": host,
            "role_path": str(folder),
            "ansible_search_path": [str(folder)],
        }
        try:
            return Templar(loader=self._loader, variables=variables).template(trust_as_template(expression))
        except AnsibleError as error:
            raise DeployError(f"role {role}: {expression} cannot be worked out: {error}") from error

    def _given(self, role: str) -> dict[str, Any]:
        """Return the variables that the plays of a deployment give ``role``."""
        for name in _PLAYBOOKS:
            for play in self._read(self._playbooks / name):
                for item in play.get("roles", ()):
                    if item["role"] == role:
                        return {key: value for key, value in item.items() if key not in _KEYWORDS}
                for task in play.get("tasks", ()):
                    if task.get("ansible.builtin.include_role", {}).get("name") == role:
                        return {**self._of_play(play), **task.get("vars", {})}
        raise DeployError(f"no play of {' and '.join(_PLAYBOOKS)} in {self._playbooks} has the role {role}")

    def _of_play(self, play: dict[str, Any]) -> dict[str, Any]:
        variables = dict(play.get("vars", {}))
        for name in play.get("vars_files", ()):
            variables |= self._read(self._playbooks / name)
        return variables

    def _read(self, file: Path) -> Any:
        if file not in self._files:
            read = self._loader.load_from_file
            self._files[file] = (read(str(file), trusted_as_template=True) or {}) if file.exists() else {}
        return self._files[file]


@functools.cache
def _loader(configuration: Path) -> DataLoader:
    """Return Ansible's reader of YAML files, with the plugins found that templates may use."""
    os.environ["ANSIBLE_CONFIG"] = str(configuration)  # read when Ansible is imported

    from ansible.parsing.dataloader import DataLoader  # noqa: PLC0415 - a third of a second
    from ansible.plugins.loader import init_plugin_loader  # noqa: PLC0415

    init_plugin_loader([])
    return DataLoader()
