#!/usr/bin/python
"""Ansible module: have the distribution's packages on a host, without their services."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DOCUMENTATION = r"""
---
module: distribution_packages
short_description: Have the distribution's packages, or a newer one, without their services
description:
  - Installs what is missing in one go with apt-get, which asks nothing, removes nothing and starts nothing,
    and keeps O(services) that came along from starting with the machine. What was there stays as it is.
  - Needs nothing on the host but apt-get, not even C(python3-apt).
options:
  state:
    description:
      - V(present) installs what is missing of O(packages).
      - V(inspected) tells what V(upgraded) would do with O(upgrade); only the lists of packages are fetched.
      - V(fetched) brings O(version) of O(upgrade), and what that needs, and installs nothing.
      - V(upgraded) installs them.
    type: str
    choices: [present, inspected, fetched, upgraded]
    default: present
  upgrade:
    description: Package that the other states are about; it has to be installed.
    type: str
    default: ""
  version:
    description: Version of it that V(fetched) and V(upgraded) are about.
    type: str
    default: ""
  packages:
    description: Programs that have to be there.
    type: list
    elements: dict
    default: []
    suboptions:
      names:
        description: Packages, any of which will do; the first that the distribution has is installed.
        type: list
        elements: str
        required: true
      provides:
        description: Absolute paths; nothing is installed when one of them is there.
        type: list
        elements: path
        required: true
  services:
    description: Units and init scripts that do not start with the machine when an installation brings them.
    type: list
    elements: str
    default: []
  bundle:
    description: Directory on the host with a bundle, the only source then; empty for the host's own sources.
    type: path
    default: ""
  cache_valid_time:
    description: Seconds for which the lists of packages count as fresh; if they lack something, they do not.
    type: int
    default: 3600
  lock_timeout:
    description: Seconds to wait for other programs that install packages.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Install a broker and a result store
  distribution_packages:
    packages:
      - {names: [rabbitmq-server], provides: [/usr/lib/rabbitmq/bin/rabbitmq-server]}
      - {names: [valkey-server, redis-server], provides: [/usr/bin/valkey-server, /usr/bin/redis-server]}
    services: [rabbitmq-server.service, epmd.socket, valkey-server.service, redis-server.service]
"""

RETURN = r"""
programs:
  description: For each of O(packages), by the first of its names, the path that is there; empty if none is.
  type: dict
  returned: always
  sample: {"nftables": "/usr/sbin/nft", "valkey-server": "/usr/bin/redis-server"}
missing:
  description: The first names of what was not there before.
  type: list
  elements: str
  returned: always
installed:
  description: Packages that were chosen and installed.
  type: list
  elements: str
  returned: always
version:
  description: The version of O(upgrade) that is installed.
  type: str
  returned: with V(inspected) and V(upgraded)
candidate:
  description: The version of it that the sources have.
  type: str
  returned: with V(inspected)
order:
  description: What the candidate is to the one installed, C(newer), C(same) or C(older).
  type: str
  returned: with V(inspected)
changes:
  description: What would be installed with the candidate, by name of package; the candidate itself is in it.
  type: dict
  returned: with V(inspected)
  sample: {"rabbitmq-server": "4.0.7-1"}
versions:
  description: The versions of O(upgrade) and of Erlang's packages that are installed, by name of package.
  type: dict
  returned: with V(inspected)
"""

_LISTS = Path("/var/lib/apt/lists")
_UNITS = [Path("/usr/lib/systemd/system"), Path("/lib/systemd/system")]
_INIT_SCRIPTS = Path("/etc/init.d")
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_BEFORE = Path("/usr/sbin/policy-rc.d.before-clusterkit")
#: What apt-get and dpkg say when somebody else is at it.
_LOCKED = re.compile(r"Could not get lock|Unable to (acquire|lock)|(using it|locked) by another process")
_INTERRUPTED = "dpkg --configure -a"
#: What apt-get says when it cannot reach a registry, or has no list of one.
_NO_REGISTRY = re.compile(
    r"Could not resolve|Temporary failure resolving|Could not connect|Connection (failed|timed out|refused)"
    r"|Network is unreachable|Failed to fetch|Unable to locate package|No installation candidate"
)
_POLL = 1.0
#: Lines of a failed command's output that are shown.
_TAIL = 25

# A list that cannot be fetched is an error, not a warning; and a host without a network knows it soon.
_UPDATE = [
    *("apt-get", "update", "--quiet"),
    *("--option=APT::Update::Error-Mode=any", "--option=Acquire::Retries=1"),
]
_INSTALL = [
    *("apt-get", "install", "--quiet", "--assume-yes", "--no-install-recommends"),
    # An operator's other programs are worth more than ours.
    "--no-remove",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
]


#: A line of what apt-get says it would do: Inst name [installed] (to be installed, and where from).
_WOULD_INSTALL = re.compile(r"^Inst (\S+)(?: \[[^]]*\])? \((\S+)", re.MULTILINE)
#: What a package runs on can matter as much as its own version: the machine that a broker runs in.
_RUNTIMES = ["erlang-base", "erlang-base-hipe"]


class PackagesError(Exception):
    """The packages cannot be had; `output` is what the failed command said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class Apt:
    """apt-get with the host's own sources, or with those of a bundle alone."""

    def __init__(self, bundle: str, lock_timeout: int) -> None:
        self.lists = Path(bundle, "lists") if bundle else _LISTS
        self.deadline = time.monotonic() + lock_timeout
        self.environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        # Ubuntu's needrestart would restart the host's services.
        self.environment["NEEDRESTART_SUSPEND"] = "1"
        if bundle:
            self.environment["APT_CONFIG"] = str(bundle_configuration(Path(bundle)))

    def run(self, command: list[str]) -> str:
        """Run a command and return its output; wait for others that hold apt's or dpkg's locks.

        Raises:
            PackagesError: it failed.
        """
        mended = False
        while True:
            done = self.once(command)
            output = done.stdout + done.stderr
            if done.returncode == 0:
                return done.stdout
            if _INTERRUPTED in output and not mended:
                mended = True
                self.run(["dpkg", "--configure", "-a"])
            elif _LOCKED.search(output) and time.monotonic() < self.deadline:
                time.sleep(_POLL)
            else:
                lines = output.strip().splitlines()[-_TAIL:]
                raise PackagesError(f"{' '.join(command[:2])} failed", "\n".join(lines))

    def once(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command that asks nothing."""
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
        )

    def update(self) -> None:
        """Fetch the lists of packages."""
        self.run(_UPDATE)

    def is_fresh(self, seconds: int) -> bool:
        """Tell whether the lists of packages were fetched within these seconds."""
        lists = [path for path in self.lists.glob("*_Packages*") if path.is_file()]
        return bool(lists) and time.time() - self.lists.stat().st_mtime < seconds

    def installed(self, name: str) -> str:
        """Return the version of a package that is installed; empty when none is."""
        done = self.once(["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", name])
        status, _, version = done.stdout.strip().partition(" ")
        return version if status == "installed" else ""

    def candidate(self, name: str, *, bundle: bool) -> str:
        """Return the version of a package that the sources have; with a bundle, the one in it."""
        if bundle:
            # Of the installed and the bundle's version, apt's own choice would be the newer one.
            lines = self.run(["apt-cache", "madison", name]).splitlines()
            return lines[0].split("|")[1].strip() if lines else ""
        found = re.search(r"^\s*Candidate: (\S+)", self.run(["apt-cache", "policy", name]), re.MULTILINE)
        return found[1] if found and found[1] != "(none)" else ""

    def order(self, version: str, installed: str) -> str:
        """Return what a version is to the installed one: newer, same or older."""
        if version == installed:
            return "same"
        newer = self.once(["dpkg", "--compare-versions", version, "gt", installed]).returncode == 0
        return "newer" if newer else "older"

    def choose(self, names: list[str]) -> str | None:
        """Return the first of the packages that there is."""
        return next((name for name in names if self.once(["apt-cache", "show", name]).returncode == 0), None)


def bundle_configuration(bundle: Path) -> Path:
    """Write apt's configuration that makes a bundle its only source, and return its path.

    Raises:
        PackagesError: the bundle is for another release or machine.
    """
    about = json.loads(Path(bundle, "bundle.json").read_text(encoding="utf-8"))
    here = {"release": release_name(), "architecture": architecture()}
    if any(about[key] != value for key, value in here.items()):
        raise PackagesError(
            f"the bundle is for Debian {about['release']} ({about['architecture']}), and this host is "
            f"{here['release'] or 'something else'} ({here['architecture']}): "
            f"make a bundle for it with make bundle DEBIAN={here['release'] or '...'}"
        )
    sources, lists, configuration = bundle / "sources.list", bundle / "lists", bundle / "apt.conf"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    # Trusted, because it came from the control machine, which has checked the signatures.
    sources.write_text(f"deb [trusted=yes] file:{bundle} ./\n", encoding="utf-8")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
        "Dir::Cache::PkgCache": "",
        "Dir::Cache::SrcPkgCache": "",
        "Acquire::Languages": "none",
    }
    text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
    configuration.write_text(text, encoding="utf-8")
    return configuration


def release_name() -> str:
    """Return the host's release as Debian calls it, such as trixie (os-release(5))."""
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    match = re.search(r'^VERSION_CODENAME="?([\w-]+)', text, re.MULTILINE)
    return match[1] if match else ""


def architecture() -> str:
    """Return the architecture of the host's packages, such as amd64."""
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def find_programs(packages: list[Mapping[str, Any]]) -> dict[str, str]:
    """Return, for each package by its first name, the path of what it provides; empty when it is missing."""
    return {
        package["names"][0]: next((path for path in package["provides"] if Path(path).exists()), "")
        for package in packages
    }


def install(apt: Apt, wanted: list[list[str]], cache_valid_time: int) -> list[str]:
    """Install one of each of the alternatives, and return which.

    Raises:
        PackagesError: that cannot be done.
    """
    fresh = apt.is_fresh(cache_valid_time)
    if fresh:
        # The lists may still be too old, or lack a package: then they are fetched, and all is tried again.
        with contextlib.suppress(PackagesError):
            return install_from_lists(apt, wanted)
    try:
        apt.update()
    except PackagesError as update:
        # One of the host's sources may be broken, and not the one that is needed.
        try:
            return install_from_lists(apt, wanted)
        except PackagesError as error:
            raise PackagesError(str(error), f"{update.output}\n{error.output}") from error
    return install_from_lists(apt, wanted)


def install_from_lists(apt: Apt, wanted: list[list[str]]) -> list[str]:
    """Install what the lists have, all at once."""
    chosen = [apt.choose(names) for names in wanted]
    unknown = [names for names, name in zip(wanted, chosen, strict=True) if name is None]
    if unknown:
        raise PackagesError(f"Unable to locate package {', '.join(' or '.join(names) for names in unknown)}")
    names = [name for name in chosen if name]
    with nothing_started():
        apt.run([*_INSTALL, *names])
    return names


def inspect(apt: Apt, name: str, bundle: str) -> dict[str, Any]:
    """Return what an upgrade of the package would do.

    Raises:
        PackagesError: it is not installed, the sources lack it, or what it needs cannot be had.
    """
    apt.update()
    version, candidate = apt.installed(name), apt.candidate(name, bundle=bool(bundle))
    if not version or not candidate:
        raise PackagesError(f"Unable to locate package {name}" if version else f"{name} is not installed")
    order = apt.order(candidate, version)
    changes = {}
    if order == "newer":
        simulated = apt.run([*_INSTALL, "--simulate", f"{name}={candidate}"])
        changes = dict(_WOULD_INSTALL.findall(simulated))
    versions = {package: apt.installed(package) for package in (name, *_RUNTIMES)}
    return {
        "version": version,
        "candidate": candidate,
        "order": order,
        "changes": changes,
        "versions": {package: version for package, version in versions.items() if version},
    }


def upgrade(apt: Apt, name: str, version: str) -> bool:
    """Install a version of a package that is there in another one; return whether anything was done.

    Raises:
        PackagesError: that cannot be done.
    """
    if apt.installed(name) == version:
        return False
    with nothing_started():
        apt.run([*_INSTALL, f"{name}={version}"])
    return True


@contextlib.contextmanager
def nothing_started() -> Iterator[None]:
    """Keep packages from starting their services: invoke-rc.d(8) asks a policy, and 101 is "not allowed".

    The policy counts as long as this process lives; should it be killed, what it leaves behind does nothing.
    """
    if _POLICY.exists() and not _POLICY_BEFORE.exists():
        _POLICY.rename(_POLICY_BEFORE)
    _POLICY.write_text(
        f"#!/bin/sh\n[ ! -d /proc/{os.getpid()} ] || exit 101\n"
        f'[ ! -x {_POLICY_BEFORE} ] || exec {_POLICY_BEFORE} "$@"\n',
        encoding="utf-8",
    )
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if _POLICY_BEFORE.exists():
            _POLICY_BEFORE.rename(_POLICY)
        else:
            _POLICY.unlink()


def there(services: list[str]) -> set[str]:
    """Return those of the services that the host has."""
    return {
        name
        for name in services
        if any((units / name).exists() for units in _UNITS)
        or (name.endswith(".service") and (_INIT_SCRIPTS / name.removesuffix(".service")).exists())
    }


def disable(apt: Apt, services: list[str]) -> None:
    """Keep services from starting with the machine."""
    if services and shutil.which("systemctl"):
        apt.run(["systemctl", "--quiet", "disable", *services])
        return
    for name in services:
        script = name.removesuffix(".service")
        if (_INIT_SCRIPTS / script).exists():
            apt.run(["update-rc.d", script, "disable"])


def explained(error: PackagesError, missing: list[str], bundle: str) -> str:
    """Return what failed, and what helps."""
    text = f"{', '.join(missing)}: cannot be installed: {error}"
    if _NO_REGISTRY.search(f"{error}\n{error.output}"):
        text += (
            "; the bundle lacks something: make it again with this version of the kit (make bundle)"
            if bundle
            else "; if the host is to reach no registry of packages: make bundle, then cluster-up BUNDLE=..."
        )
    return text


def replace(module: AnsibleModule) -> dict[str, Any]:
    """Look at, or install, another version of a package; return the module's result.

    Raises:
        PackagesError: that cannot be done.
    """
    options = module.params
    name = options["upgrade"]
    apt = Apt(options["bundle"], options["lock_timeout"])
    if options["state"] == "inspected":
        return {"changed": False, **inspect(apt, name, options["bundle"])}
    if options["state"] == "fetched":
        if options["bundle"]:
            apt.update()
        apt.run([*_INSTALL, "--download-only", f"{name}={options['version']}"])
        return {"changed": False, "version": apt.installed(name)}
    before = there(options["services"])
    changed = not module.check_mode and upgrade(apt, name, options["version"])
    disable(apt, sorted(there(options["services"]) - before))
    return {"changed": changed, "version": apt.installed(name)}


def main() -> None:
    """Run the module."""
    package = {
        "names": {"type": "list", "elements": "str", "required": True},
        "provides": {"type": "list", "elements": "path", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["present", "inspected", "fetched", "upgraded"],
                "default": "present",
            },
            "upgrade": {"type": "str", "default": ""},
            "version": {"type": "str", "default": ""},
            "packages": {"type": "list", "elements": "dict", "default": [], "options": package},
            "services": {"type": "list", "elements": "str", "default": []},
            "bundle": {"type": "path", "default": ""},
            "cache_valid_time": {"type": "int", "default": 3600},
            "lock_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    if module.params["state"] == "present":
        module.exit_json(**have(module))
    try:
        module.exit_json(**replace(module))
    except PackagesError as error:
        name = module.params["upgrade"]
        module.fail_json(msg=explained(error, [name], module.params["bundle"]), stderr=error.output)


def have(module: AnsibleModule) -> dict[str, Any]:
    """Install what is missing and return the module's result."""
    options = module.params
    programs = find_programs(options["packages"])
    missing = [name for name, path in programs.items() if not path]
    if not missing or module.check_mode:
        return {"changed": bool(missing), "programs": programs, "missing": missing, "installed": []}
    before = there(options["services"])
    try:
        apt = Apt(options["bundle"], options["lock_timeout"])
        wanted = [item["names"] for item in options["packages"] if item["names"][0] in missing]
        installed = install(apt, wanted, options["cache_valid_time"])
        disable(apt, sorted(there(options["services"]) - before))
    except PackagesError as error:
        module.fail_json(
            msg=explained(error, missing, options["bundle"]), stderr=error.output, missing=missing
        )
    programs = find_programs(options["packages"])
    lost = [name for name, path in programs.items() if not path]
    if lost:
        module.fail_json(msg=f"{', '.join(lost)}: installed, but not where it is looked for", missing=missing)
    return {"changed": True, "programs": programs, "missing": missing, "installed": installed}


if __name__ == "__main__":
    main()
