#!/usr/bin/python
"""Ansible module: a cluster's names in /etc/hosts and its firewall, in one call."""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_files import read, replace
from ansible.module_utils.clusterkit_firewall import kernel_problem, ruleset, table
from ansible.module_utils.clusterkit_hosts_block import HostsFileError, begin, block, check_names, with_block

DOCUMENTATION = r"""
---
module: host_network
short_description: Give a host the names of its cluster and a firewall for its ports
description:
  - Keeps a marked block in /etc/hosts. Where that cannot be replaced (Docker mounts it) it is written in
    place. A unit puts the block back at boot where something else writes the file anew (Docker, cloud-init).
  - Keeps a table of nftables of its own, replaced in one step, and a unit that loads it at boot. Other tables
    are not touched. The distribution's nftables.service, which flushes them all, then loads this one again.
  - Connections that are already there stay when the rules change.
  - A run that changes nothing reads a few files and asks nft once.
options:
  cluster:
    description: Name of the cluster.
    type: str
    required: true
  names:
    description: Lines of the block in /etc/hosts, in their order. Without any the block is removed.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: An IP address.
        type: str
        required: true
      name:
        description: The name that is there; a name with several addresses has a line for each.
        type: str
        required: true
  openings:
    description: The ports that are guarded. Without any the firewall is removed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What listens there, for whoever reads the rules.
        type: str
        required: true
      port:
        description: The TCP port.
        type: int
        required: true
      sources:
        description: Addresses and address ranges that may connect; the host itself always may.
        type: list
        elements: str
        required: true
      control:
        description: Whether O(control_address) may connect, too.
        type: bool
        default: false
  control_address:
    description: Address of the machine that runs Ansible, as this host sees it.
    type: str
    default: ""
  hosts_file:
    description: The file with names.
    type: path
    default: /etc/hosts
  config_directory:
    description: Directory of the files that the units read.
    type: path
    default: /etc/clusterkit
  unit_directory:
    description: Directory of the units.
    type: path
    default: /etc/systemd/system
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Let workers reach the broker
  host_network:
    cluster: lab
    names:
      - {address: 192.0.2.1, name: h1.lab.internal}
      - {address: 192.0.2.1, name: brokers.lab.internal}
    openings:
      - {name: amqp, port: 5671, sources: [192.0.2.4, 198.51.100.0/24], control: true}
    control_address: 203.0.113.9
"""

RETURN = r"""
changed_paths:
  description: Files that were written or removed.
  type: list
  elements: str
  returned: always
loaded:
  description: Whether the firewall's rules were loaded, because they are new or the kernel had others.
  type: bool
  returned: always
"""

# At boot, before anything of the cluster; after what may write /etc/hosts anew.
_NAMES_UNIT = """\
# Written by the role `host`; changes are lost at the next run.
[Unit]
Description=clusterkit names of {cluster} in {hosts}
After=cloud-init.service cloud-init-network.service
Before=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c {script}

[Install]
WantedBy=multi-user.target
"""
_FIREWALL_UNIT = """\
# Written by the role `host`; changes are lost at the next run.
[Unit]
Description=clusterkit firewall of {cluster}
DefaultDependencies=no
After=nftables.service
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={nft} -f {rules}
ExecReload={nft} -f {rules}
ExecStop=-{nft} delete table inet {table}

[Install]
WantedBy=multi-user.target
"""
# The distribution's unit begins with flushing every table, also this one.
_AFTER_FLUSH = """\
# Written by the role `host`; changes are lost at the next run.
[Service]
ExecStartPost=-{nft} -f {rules}
ExecReload=-{nft} -f {rules}
"""


class HostNetworkError(Exception):
    """The host's network cannot be made as wanted."""


class HostNetwork:
    """The files, units and rules of one module call."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._options: dict[str, Any] = module.params
        self._cluster: str = module.params["cluster"]
        self._config = Path(module.params["config_directory"])
        self._units = Path(module.params["unit_directory"])
        self.changed_paths: list[str] = []
        self.loaded = False

    def apply(self) -> None:
        """Make names and firewall as wanted.

        Raises:
            HostNetworkError, HostsFileError: one of them is not possible.
            OSError: a file cannot be written.
        """
        nft = self._nft() if self._options["openings"] else ""
        self._names()
        if nft:
            self._firewall(nft)
        else:
            self._remove_unit(self._firewall_unit, self._firewall_files())

    def _names(self) -> None:
        hosts = Path(self._options["hosts_file"])
        wanted = block(self._cluster, self._options["names"])
        text = hosts.read_text(encoding="utf-8", errors="surrogateescape")
        try:
            new = with_block(text, self._cluster, wanted)
        except HostsFileError as error:
            raise HostsFileError(f"{hosts}: {error}") from None
        if new != text:
            self.changed_paths.append(str(hosts))
            if not self._module.check_mode:
                self._write_hosts(hosts, new)
        self._names_at_boot(hosts, wanted)
        if not self._module.check_mode:
            check_names(self._options["names"])

    def _write_hosts(self, hosts: Path, text: str) -> None:
        target = hosts.resolve()  # a link stays one
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
            # Ansible's own way keeps mode and owner, and writes in place what cannot be renamed over.
            self._module.atomic_move(name, str(target), unsafe_writes=True)
        finally:
            Path(name).unlink(missing_ok=True)

    def _names_at_boot(self, hosts: Path, wanted: str) -> None:
        kept = self._config / f"names-{self._cluster}"
        unit = f"clusterkit-names-{self._cluster}.service"
        if not wanted:
            self._remove_unit(unit, (kept,))
            return
        script = f"grep -qxF '{begin(self._cluster)}' {hosts} || cat {kept} >> {hosts}"
        self._write(kept, wanted)
        text = _NAMES_UNIT.format(cluster=self._cluster, hosts=hosts, script=shlex.quote(script))
        if self._write(self._units / unit, text, 0o644) or not self._enabled(unit):
            self._systemctl("daemon-reload")
            self._systemctl("enable", unit)

    def _nft(self) -> str:
        """Return the path of nft, once it is sure that it can work."""
        nft: str | None = self._module.get_bin_path("nft")
        problem = kernel_problem() if nft else "the package nftables is not installed"
        if problem or not nft:
            raise HostNetworkError(f"no firewall: {problem}. With `firewall: false` the cluster does without")
        return nft

    def _firewall(self, nft: str) -> None:
        unit = self._firewall_unit
        rules, note, flush = self._firewall_files()
        values = {"cluster": self._cluster, "nft": nft, "rules": rules, "table": table(self._cluster)}
        texts = {
            rules: ruleset(self._cluster, self._options["openings"], self._options["control_address"]),
            self._units / unit: _FIREWALL_UNIT.format(**values),
            flush: _AFTER_FLUSH.format(**values),
        }
        self._write(rules, texts[rules], check=lambda new: self._check_rules(nft, new))
        self._write(self._units / unit, texts[self._units / unit], 0o644)
        self._write(flush, texts[flush], 0o644)
        wanted = "".join(texts.values())
        if not self._enabled(unit) or self._loaded_note(nft, wanted) != read(note):
            self.loaded = True
            self._systemctl("daemon-reload")
            self._systemctl("enable", unit)
            self._systemctl("reload-or-restart", unit)
            if not self._module.check_mode:
                replace(note, self._loaded_note(nft, wanted))

    @property
    def _firewall_unit(self) -> str:
        return f"clusterkit-firewall-{self._cluster}.service"

    def _firewall_files(self) -> tuple[Path, Path, Path]:
        """Return the files with the rules, with a note of what was loaded, and for nftables.service."""
        return (
            self._config / f"firewall-{self._cluster}.nft",
            self._config / f"firewall-{self._cluster}.loaded",
            self._units / "nftables.service.d" / f"clusterkit-{self._cluster}.conf",
        )

    def _check_rules(self, nft: str, new: Path) -> None:
        code, _, err = self._module.run_command([nft, "-c", "-f", str(new)])
        if code:
            raise HostNetworkError(f"nft refuses the firewall's rules: {err.strip()}")

    def _loaded_note(self, nft: str, wanted: str) -> bytes:
        """Return a note that is another one when something else is wanted, or the kernel has other rules.

        Those in the kernel are in it as nft shows them, without counters: that is never quite the file
        that nft was given.
        """
        command = [nft, "--stateless", "list", "table", "inet", table(self._cluster)]
        code, out, _ = self._module.run_command(command)
        listed = "" if code else out
        return f"{hashlib.sha256(wanted.encode()).hexdigest()}\n{listed}".encode()

    def _write(self, path: Path, text: str, mode: int = 0o600, check: Any = None) -> bool:
        """Write a file unless it is so already, and return whether it was not so."""
        if read(path) == text.encode():
            return False
        self.changed_paths.append(str(path))
        if not self._module.check_mode:
            path.parent.mkdir(mode=0o755 if mode & 0o44 else 0o700, parents=True, exist_ok=True)
            replace(path, text.encode(), mode, check)
        return True

    def _enabled(self, unit: str) -> bool:
        return (self._units / "multi-user.target.wants" / unit).is_symlink()

    def _remove_unit(self, unit: str, files: tuple[Path, ...]) -> None:
        """Stop and remove a unit and the files it reads, if they are there."""
        paths = [path for path in (self._units / unit, *files) if path.exists()]
        if not paths:
            return
        self.changed_paths += [str(path) for path in paths]
        if self._module.check_mode:
            return
        if (self._units / unit).exists():
            self._systemctl("disable", "--now", unit)
        for path in paths:
            path.unlink()
        self._systemctl("daemon-reload")

    def _systemctl(self, *words: str) -> None:
        if self._module.check_mode:
            return
        code, out, err = self._module.run_command(["systemctl", *words])
        if code:
            raise HostNetworkError(f"systemctl {' '.join(words)} failed: {(err or out).strip()}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "cluster": {"type": "str", "required": True},
            "names": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "address": {"type": "str", "required": True},
                    "name": {"type": "str", "required": True},
                },
            },
            "openings": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "sources": {"type": "list", "elements": "str", "required": True},
                    "control": {"type": "bool", "default": False},
                },
            },
            "control_address": {"type": "str", "default": ""},
            "hosts_file": {"type": "path", "default": "/etc/hosts"},
            "config_directory": {"type": "path", "default": "/etc/clusterkit"},
            "unit_directory": {"type": "path", "default": "/etc/systemd/system"},
        },
        supports_check_mode=True,
    )
    network = HostNetwork(module)
    try:
        network.apply()
    except (HostNetworkError, HostsFileError, OSError, ValueError) as error:
        module.fail_json(
            msg=f"the network of the cluster {module.params['cluster']}: {error}",
            changed_paths=network.changed_paths,
        )
    module.exit_json(
        changed=bool(network.changed_paths) or network.loaded,
        changed_paths=network.changed_paths,
        loaded=network.loaded,
    )


if __name__ == "__main__":
    main()
