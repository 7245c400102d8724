"""The kit's services as units of systemd: their text, which are installed, how they are, what they log."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.clusterkit_files import replace
from ansible.module_utils.clusterkit_services import waves
from ansible.module_utils.clusterkit_slots import ACTIVE, DISCARD_GRACE, RETIRED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Each start of a service leaves its fingerprint here, in a file of the service's name. It is gone after a
# boot, as the processes are.
RECORDS = Path("/run/clusterkit")

# The variable with the fingerprint, in a service's environment file.
FINGERPRINT = "CLUSTERKIT_FINGERPRINT"

# How often a state is asked for while waiting, in seconds.
_POLL = 0.2

# A service that ended this often while it was waited for is given up on; systemd itself goes on trying.
_ATTEMPTS = 3

# Exit statuses with which systemd says that it could not even execute the program (systemd.exec(5), "Process
# exit codes"): another attempt ends the same way.
_NOT_EXECUTED = range(200, 246)

# siginfo's si_code, which systemctl shows as ExecMainCode (sigaction(2)).
_EXITED = 1

# What journalctl's last line begins with when it is asked for a cursor.
_CURSOR = "-- cursor: "

# What the line with the mark of a slot begins with.
_MARK = "X-ClusterkitSlot="

# What ProtectHome hides.
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_PROPERTIES = (
    "Id,ActiveState,SubState,UnitFileState,NeedDaemonReload,MainPID,ActiveEnterTimestampMonotonic,"
    "ExecMainCode,ExecMainStatus,ExecMainExitTimestampMonotonic,Result"
)

# ActiveState -> the word that supervisor has for it.
_WORDS = {
    "active": "RUNNING",
    "reloading": "RUNNING",
    "activating": "STARTING",
    "deactivating": "STOPPING",
    "inactive": "STOPPED",
    "failed": "FATAL",
}


class SystemdError(Exception):
    """systemd did not do what it was asked."""


class ServiceFailedError(SystemdError):
    """A service did not come up. `since` is when it was started, in seconds since the epoch."""

    def __init__(self, service: str, message: str, since: float) -> None:
        super().__init__(message)
        self.service = service
        self.since = since


def unit_name(service: str) -> str:
    """Return the name of the service's unit."""
    return f"clusterkit-{service}.service"


def _line(value: str) -> str:
    """Return `value`, which is one line.

    Raises:
        ValueError: it is not, and would begin another option.
    """
    if re.search(r"[\r\n\0]", value):
        raise ValueError(f"{value!r} holds a line break")
    return value


def _literal(value: str) -> str:
    """Return `value`, one line, so that systemd expands nothing in it."""
    return _line(value).replace("%", "%%")


def _quoted(path: str) -> str:
    """Return a path as one word of a list."""
    return '"' + _literal(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


# What each unit has. Written to be read on the host: an operator looks there first.
_UNIT = """\
# Written by the role `service`; changes are lost at the next run. What `systemctl edit` adds to it stays.
[Unit]
Description=clusterkit {set_name}: {name}
After={after}
Wants=network-online.target
# Never given up: what it depends on may be away for a long time.
StartLimitIntervalSec=0
X-ClusterkitSet={set_name}
X-ClusterkitPriority={priority}
X-ClusterkitStartSeconds={start_seconds}
{slot}
[Service]
# Started counts only when the program could be executed.
Type=exec
User={user}
WorkingDirectory={working_directory}
EnvironmentFile={environment_file}
# Tells the role later which version of the service runs. As root, outside of what holds the service in.
ExecStartPre=-+/bin/sh -c 'mkdir -p {records} && echo "$${fingerprint}" >{records}/{name}'
ExecStart={command}
Restart=always
RestartSec=5
# Only the main process is asked to end (a worker's children then finish their tasks); after the time-out all
# are killed.
KillMode=mixed
KillSignal=SIG{stop_signal}
TimeoutStopSec={stop_timeout}
TimeoutStartSec={start_timeout}
SyslogIdentifier={name}
# A busy worker logs more lines than the journal takes of one service by default; it would drop the others.
LogRateLimitIntervalSec=0
LimitNOFILE=65536
{limits}UMask=0077
# It can read the system, write its own directories, and gain nothing.
NoNewPrivileges=true
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
ProtectSystem=strict
ReadWritePaths={writable}
ProtectHome={protect_home}
PrivateTmp=true
PrivateDevices=true
ProtectClock=true
ProtectControlGroups=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectProc=invisible
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
LockPersonality=true
SystemCallArchitectures=native
SystemCallFilter=@system-service
# A program that tries another call is refused, not killed.
SystemCallErrorNumber=EPERM
# AF_NETLINK: programs list the host's addresses through it.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Unit:
    """One service as systemd shall run it; times in seconds. Empty limits are none."""

    name: str
    set_name: str
    command: str
    user: str
    working_directory: str
    environment_file: str
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_timeout: int = 10
    start_seconds: int = 1
    start_timeout: int = 30
    priority: int = 500
    # Any text that is another when the service has to be restarted.
    fingerprint: str = ""
    after: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    # Options of [Service] that hold its use of the host, such as MemoryMax, by their names.
    limits: Mapping[str, str] = field(default_factory=dict)
    # Whether it is replaced by handing over, in slots.
    handover: bool = False

    def text(self, mark: str = ACTIVE) -> str:
        """Return the unit's file, with the `mark` of its slot if it has one.

        Raises:
            ValueError: a value cannot be written down.
        """
        try:
            return _UNIT.format(
                name=self.name,
                set_name=_literal(self.set_name),
                after=" ".join(["network-online.target", *map(unit_name, self.after)]),
                priority=self.priority,
                start_seconds=self.start_seconds,
                slot=f"{_MARK}{mark}\n" if self.handover else "",
                user=_literal(self.user),
                working_directory=_literal(self.working_directory),
                environment_file=_literal(self.environment_file),
                records=RECORDS,
                fingerprint=FINGERPRINT,
                command=_literal(self.command).replace("$", "$$"),
                stop_signal=self.stop_signal,
                stop_timeout=self.stop_timeout,
                start_timeout=self.start_timeout,
                limits="".join(f"{name}={_line(value)}\n" for name, value in self.limits.items() if value),
                capabilities=" ".join(map(_literal, self.capabilities)),
                writable=" ".join(map(_quoted, self.writable)),
                protect_home=self._protect_home(),
            )
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def version(self) -> str:
        """Return what differs between two versions of the service of which the second needs a restart."""
        parts = [self.text(), self.fingerprint, *(f"{n}={v}" for n, v in sorted(self.environment.items()))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def environment_text(self) -> str:
        """Return the environment file, which only root can read.

        Raises:
            ValueError: a name cannot be one of a variable, or a value has a NUL.
        """
        lines = ["# Written by the role `service`; changes are lost at the next run.\n"]
        for name, value in sorted({**self.environment, FINGERPRINT: self.version()}.items()):
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{self.name}: {name!r} is not the name of an environment variable")
            if "\0" in value:
                raise ValueError(f"{self.name}: the value of {name} holds a NUL")
            # In double quotes systemd gives a meaning to these four (systemd.exec(5), EnvironmentFile).
            escaped = re.sub(r'([\\"$`])', r"\\\1", value)
            lines.append(f'{name}="{escaped}"\n')
        return "".join(lines)

    def _protect_home(self) -> str:
        """Return whether it may see people's home directories: only when the cluster is in one."""
        used = [Path(self.working_directory), *map(Path, self.writable)]
        inside = any(path.is_relative_to(home) for path in used for home in _HOMES)
        return "read-only" if inside else "true"


@dataclass(frozen=True)
class Installed:
    """A unit of the kit that is installed: its service, the set of it, and what the set's role said."""

    service: str
    set_name: str
    priority: int
    start_seconds: int
    # The mark of its slot; empty when it has none.
    mark: str
    path: Path

    @property
    def unit(self) -> str:
        """The unit's name."""
        return self.path.name


def installed_units(directory: Path) -> dict[str, Installed]:
    """Return service -> unit, for every unit in `directory` that the kit wrote."""
    found = {}
    for path in sorted(directory.glob(unit_name("*"))):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        options = dict(line.partition("=")[::2] for line in lines if line.startswith("X-Clusterkit"))
        if "X-ClusterkitSet" in options:
            service = path.name.removeprefix("clusterkit-").removesuffix(".service")
            found[service] = Installed(
                service=service,
                set_name=options["X-ClusterkitSet"],
                priority=int(options.get("X-ClusterkitPriority", 0)),
                start_seconds=int(options.get("X-ClusterkitStartSeconds", 1)),
                mark=options.get(_MARK.rstrip("="), ""),
                path=path,
            )
    return found


@dataclass(frozen=True)
class State:
    """What systemd says of one unit; times in microseconds since the boot, 0 for never."""

    active: str
    sub: str
    enabled: bool
    needs_reload: bool
    pid: int
    since: int
    ended: int
    exit_code: int
    exit_status: int
    result: str

    @property
    def runs(self) -> bool:
        """Whether it runs; not while it waits for the next attempt."""
        return self.active in {"active", "reloading"}

    @property
    def ends(self) -> bool:
        """Whether it was asked to end."""
        return self.active == "deactivating"

    @property
    def there(self) -> bool:
        """Whether it has not ended, for good."""
        return self.active not in {"inactive", "failed"}

    @property
    def word(self) -> str:
        """The state in supervisor's words."""
        return "BACKOFF" if self.sub.startswith("auto-restart") else _WORDS.get(self.active, "UNKNOWN")

    @property
    def uptime(self) -> float:
        """For how many seconds it has been running."""
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        return max(0.0, now - self.since / 1e6) if self.runs else 0.0

    def up_for(self, seconds: float) -> bool:
        """Tell whether it runs, and has been running for so long."""
        return self.runs and self.uptime >= seconds

    @property
    def error(self) -> str:
        """Why the last attempt ended; empty when nothing went wrong."""
        if self.runs or self.result == "success":
            return ""
        how = "exit status" if self.exit_code == _EXITED else "signal"
        return f"{self.result}, {how} {self.exit_status}" if self.exit_code else self.result

    @property
    def hopeless(self) -> bool:
        """Whether another attempt would end as the last one did."""
        not_executed = self.exit_code == _EXITED and self.exit_status in _NOT_EXECUTED
        return not self.runs and (not_executed or self.active in {"inactive", "failed"})


def systemctl(*arguments: str, check: bool = True) -> str:
    """Run systemctl and return what it said.

    Raises:
        SystemdError: it failed; not when `check` is False.
    """
    done = subprocess.run(
        ["systemctl", "--no-pager", *arguments],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise SystemdError(f"systemctl {' '.join(arguments)}: {said} (exit status {done.returncode})")
    return done.stdout if check else done.stderr


def states(services: Iterable[str]) -> dict[str, State]:
    """Return service -> state, also for services that are not installed."""
    units = {unit_name(service): service for service in services}
    if not units:
        return {}
    found = {}
    for block in systemctl("show", f"--property={_PROPERTIES}", *units).split("\n\n"):
        shown = dict(line.partition("=")[::2] for line in block.splitlines())
        found[units[shown["Id"]]] = State(
            active=shown["ActiveState"],
            sub=shown["SubState"],
            enabled=shown["UnitFileState"] == "enabled",
            needs_reload=shown["NeedDaemonReload"] == "yes",
            pid=int(shown["MainPID"]),
            since=int(shown["ActiveEnterTimestampMonotonic"]),
            ended=int(shown["ExecMainExitTimestampMonotonic"]),
            exit_code=int(shown["ExecMainCode"]),
            exit_status=int(shown["ExecMainStatus"]),
            result=shown["Result"],
        )
    return found


def running_version(service: str) -> str:
    """Return the version with which the service was last started; empty when that is not known."""
    try:
        return (RECORDS / service).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def restart(services: Iterable[str], seconds: Mapping[str, int], timeout: float) -> dict[str, State]:
    """Start or restart `services` together, and wait until all in `seconds` stayed up for so many.

    Each may need `timeout` seconds in addition. Returns the states of all.

    Raises:
        ServiceFailedError: one did not stay up.
    """
    begin = time.time()
    units = [unit_name(service) for service in sorted(services)]
    # Of a program that ends at once the journal says more than systemctl does.
    said = systemctl("restart", *units, check=False).strip() if units else ""
    ends: dict[str, set[int]] = {service: set() for service in seconds}
    deadline = time.monotonic() + max(seconds.values(), default=0) + timeout
    while True:
        found = states(seconds)
        for service, state in found.items():
            if not state.runs and state.ended:
                ends[service].add(state.ended)
            if state.hopeless or len(ends[service]) >= _ATTEMPTS:
                message = f"{service} does not stay up: {state.error or said or state.active}"
                raise ServiceFailedError(service, message, begin)
        late = [service for service, state in found.items() if not state.up_for(seconds[service])]
        if not late:
            return found
        if time.monotonic() > deadline:
            state = found[late[0]]
            message = f"{late[0]} is {state.word} after {time.time() - begin:.0f} s. {state.error}".strip()
            raise ServiceFailedError(late[0], message, begin)
        time.sleep(_POLL)


def stop(services: Iterable[str], priorities: Mapping[str, int]) -> None:
    """Stop services, those of the highest priority number first, the ones of one number together.

    Each has its own stop time-out, after which systemd kills it.

    Raises:
        SystemdError: systemd refuses, or one does not end even so.
    """
    for wave in reversed(waves(services, priorities)):
        systemctl("stop", *map(unit_name, wave))


def mark(unit: Installed, word: str) -> None:
    """Change the mark of a unit's slot; it counts for systemd, which does not read it, at once."""
    lines = unit.path.read_text(encoding="utf-8").splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if line.startswith("X-ClusterkitStartSeconds=")) + 1
    lines[at : at + lines[at].startswith(_MARK)] = [f"{_MARK}{word}\n"]
    replace(unit.path, "".join(lines).encode(), 0o644)


def retire(units: Iterable[Installed]) -> None:
    """Ask services to end, once and for all, and do not wait: each may take its whole stop time-out."""
    units = list(units)
    if not units:
        return
    for unit in units:
        mark(unit, RETIRED)
    disable(unit.service for unit in units)
    systemctl("stop", "--no-block", *(unit.unit for unit in units))


def discard(units: Iterable[Installed], environment_directory: Path) -> None:
    """Retire services that did not prove themselves, and remove those that end soon."""
    units = list(units)
    retire(units)
    deadline = time.monotonic() + DISCARD_GRACE
    while (found := states(unit.service for unit in units)) and time.monotonic() < deadline:
        if not any(state.there for state in found.values()):
            break
        time.sleep(_POLL)
    forget((unit for unit in units if not found[unit.service].there), environment_directory)


def forget(units: Iterable[Installed], environment_directory: Path) -> None:
    """Remove units that are stopped, with their environment and their records."""
    units = list(units)
    if not units:
        return
    systemctl("disable", "--no-reload", *(unit.unit for unit in units))
    for unit in units:
        unit.path.unlink(missing_ok=True)
        (environment_directory / f"{unit.service}.env").unlink(missing_ok=True)
        (RECORDS / unit.service).unlink(missing_ok=True)
    systemctl("daemon-reload")
    # A unit that failed would be listed for ever. One that did not is not known any more: no matter.
    systemctl("reset-failed", *(unit.unit for unit in units), check=False)


def verify(units: Mapping[str, str], directory: Path) -> None:
    """Let systemd check the texts of units, by their names, in the empty `directory`.

    Raises:
        SystemdError: it finds something wrong.
    """
    for name, text in units.items():
        (directory / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--recursive-errors=no",
            "--man=no",
            *(str(directory / n) for n in units),
        ],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    # A value that it does not understand is only a warning to it.
    said = [line.replace(f"{directory}/", "") for line in done.stderr.splitlines() if _names(line, units)]
    if done.returncode or said:
        raise SystemdError("systemd finds fault with a unit: " + ("\n".join(said) or done.stderr.strip()))


def _names(line: str, units: Iterable[str]) -> bool:
    return any(name in line for name in units)


def journal(service: str, *arguments: str) -> str:
    """Return what journalctl prints of a service: its own lines, and systemd's about it.

    Raises:
        SystemdError: the journal cannot be read.
    """
    done = subprocess.run(
        ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--unit={unit_name(service)}", *arguments],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise SystemdError(f"the journal of {service}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def journal_from(service: str, cursor: str, count: int) -> tuple[list[str], str]:
    """Return the lines of at most `count` entries, the last or the first after `cursor`, and a new cursor.

    Raises:
        SystemdError: the journal cannot be read.
    """
    place = [f"--after-cursor={cursor}"] if cursor else []
    lines = journal(service, f"--lines={count}", "--show-cursor", *place).splitlines()
    if lines and lines[-1].startswith(_CURSOR):
        cursor = lines.pop().removeprefix(_CURSOR)
    return lines, cursor


def logged_since(service: str, since: float) -> list[str]:
    """Return what a service logged since a time, in seconds since the epoch."""
    # The lines of a program that has just ended may still be on their way.
    subprocess.run(["journalctl", "--sync"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return journal(service, f"--since=@{since:.6f}").splitlines()


def enable(services: Iterable[str]) -> None:
    """Have services started when the host boots; that counts from the next reload of systemd."""
    units = [unit_name(service) for service in services]
    if units:
        systemctl("enable", "--no-reload", *units)


def disable(services: Iterable[str]) -> None:
    """Have services not started any more when the host boots."""
    units = [unit_name(service) for service in services]
    if units:
        systemctl("disable", *units)
