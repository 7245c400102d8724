"""A cluster's private supervisord: where its files are, its configuration, and its XML-RPC interface.

Everything is reached through a unix socket that only the user the cluster runs as can open.
"""

from __future__ import annotations

import configparser
import hashlib
import http.client
import os
import pwd
import re
import socket
import stat
import time
import xmlrpc.client
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ansible.module_utils.clusterkit_files import replace
from ansible.module_utils.clusterkit_logs import size
from ansible.module_utils.clusterkit_processes import MARKER, describe
from ansible.module_utils.clusterkit_services import waves
from ansible.module_utils.clusterkit_slots import DISCARD_GRACE, RETIRED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# sockaddr_un.sun_path holds 108 bytes with the closing NUL (unix(7)); supervisord first binds
# "<path>.<pid>", and a pid has seven digits at most (PID_MAX_LIMIT, 4194304).
_LONGEST_SOCKET_PATH = 107 - len(".4194304")

# How often a state is asked for while waiting, in seconds.
_POLL = 0.1

# The option with the mark of a program's slot.
MARK = "clusterkit_slot"

# The states of supervisor.states.ProcessStates that need no start.
_ALIVE = {"STARTING", "RUNNING"}

# Faults of supervisor.xmlrpc.Faults.
FAULT_CANNOT_REREAD = 92
_FAULT_BAD_NAME = 10
_FAULT_SPAWN_ERROR = 50
_FAULT_ALREADY_STARTED = 60
_FAULT_NOT_RUNNING = 70
_FAULT_ALREADY_ADDED = 90

# The last argument of startProcess and stopProcess: many are asked first, and then waited for together.
_NO_WAIT = False

# A program that fails to start this often is given up on; supervisord itself goes on trying.
_ATTEMPTS = 3


# What a value in a file of supervisor cannot hold: the file's parser cuts a line at a blank and one of ; and
# #, and %(here)s is replaced even where % is doubled (supervisor.options.UnhosedConfigParser.expand_here).
_UNWRITABLE = re.compile(r"[\r\n\0]|\s[;#]|%\(here\)s")
_UNWRITABLE_TEXT = "a line break, a blank before ; or #, or %(here)s"


class SupervisorError(Exception):
    """supervisord, or a program under it, did not do what it was asked."""


class ProgramFailedError(SupervisorError):
    """A program did not come up or did not stop.

    `program` is its name; its log was `log_start` bytes long before it was tried.
    """

    def __init__(self, program: str, message: str, log_start: int = 0) -> None:
        super().__init__(message)
        self.program = program
        self.log_start = log_start


@dataclass(frozen=True)
class Layout:
    """Where the supervisor's files of one cluster are; `home` is absolute and without symbolic links."""

    home: Path

    @property
    def directory(self) -> Path:
        """The directory of everything that supervisord reads."""
        return self.home / "supervisor"

    @property
    def sets(self) -> Path:
        """The directory that holds one file of programs per set."""
        return self.directory / "sets"

    @property
    def configuration(self) -> Path:
        """The configuration file of supervisord itself."""
        return self.directory / "supervisord.conf"

    @property
    def pid_file(self) -> Path:
        """The file with the process id of supervisord."""
        return self.directory / "supervisord.pid"

    @property
    def socket(self) -> Path:
        """The unix socket; in a directory of its own under /tmp when the home's path is too long for one.

        Not under $XDG_RUNTIME_DIR: that one is removed when the user logs out, under the running cluster.
        """
        path = self.directory / "supervisor.sock"
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        # Anybody may write there, so check_private() looks at the directory before it is used.
        return Path(f"/tmp/clusterkit-{os.geteuid()}-{digest}/supervisor.sock")  # noqa: S108

    def set_file(self, name: str) -> Path:
        """Return the file of the programs of set `name`."""
        return self.sets / f"{name}.conf"

    def set_names(self) -> list[str]:
        """Return the names of the sets there are, in order."""
        return sorted(path.stem for path in self.sets.glob("*.conf"))

    def programs(self, set_name: str) -> dict[str, dict[str, str]]:
        """Return program name -> its options, for the programs of a set; empty when there is no such set."""
        parser = configparser.RawConfigParser()
        parser.read(self.set_file(set_name), encoding="utf-8")
        return {
            section.partition(":")[2]: dict(parser.items(section))
            for section in parser.sections()
            if section.startswith("program:")
        }

    def write(self, set_name: str, programs: Mapping[str, Mapping[str, str]]) -> None:
        """Write the file of a set, program name -> its options, or remove it when there is none."""
        if programs:
            text = "\n".join(section(name, options) for name, options in programs.items())
            replace(self.set_file(set_name), text.encode())
        else:
            self.set_file(set_name).unlink(missing_ok=True)

    def marks(self) -> dict[str, str]:
        """Return program name -> the mark of its slot, for all sets; empty for those without slots."""
        return {
            program: options.get(MARK, "")
            for name in self.set_names()
            for program, options in self.programs(name).items()
        }

    def set_of(self) -> dict[str, str]:
        """Return program name -> the set it is in, for all sets."""
        return {program: name for name in self.set_names() for program in self.programs(name)}


def check_private(directory: Path) -> None:
    """Make `directory` (0700), or check that it is ours alone.

    Raises:
        SupervisorError: it is a link, or belongs to or is open to somebody else. Under /tmp anybody could
            have made it first, and would then own the socket through which programs are started.
    """
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            message = f"{directory} is not a directory that only this user can open; remove it"
            raise SupervisorError(message) from None


def quote(value: str) -> str:
    """Return `value` in quotes for supervisor's ``environment`` option.

    Its parser (supervisor.datatypes.dict_of_key_value_pairs) knows no escape inside of quotes and strips
    quotes from both ends; ``%`` starts an expansion.

    Raises:
        ValueError: the value cannot be written down.
    """
    if _UNWRITABLE.search(value):
        raise ValueError(f"holds {_UNWRITABLE_TEXT}")
    if value[:1] in {'"', "'"} or value[-1:] in {'"', "'"} or ('"' in value and "'" in value):
        raise ValueError("begins or ends with a quote, or holds both kinds")
    mark = "'" if '"' in value else '"'
    return mark + value.replace("%", "%%") + mark


def main_configuration(layout: Layout, log_directory: str) -> str:
    """Return the text of supervisord's own configuration."""
    # Said by root alone: without it supervisord warns at each start that it runs as root.
    user = "user = root\n" if os.geteuid() == 0 else ""

    def literal(path: Path | str) -> str:
        return str(path).replace("%", "%%")

    return f"""\
; Written by the role `service`; changes are lost at the next run.
[supervisord]
logfile = {literal(Path(log_directory, "supervisord.log"))}
logfile_maxbytes = 10MB
logfile_backups = 2
pidfile = {literal(layout.pid_file)}
directory = {literal(layout.home)}
umask = 077
{user}nocleanup = true

[unix_http_server]
file = {literal(layout.socket)}
chmod = 0600

[supervisorctl]
serverurl = unix://{literal(layout.socket)}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[include]
files = {literal(layout.sets)}/*.conf
"""


def section(name: str, options: Mapping[str, str]) -> str:
    """Return a program's section of a set's file."""
    return "".join([f"[program:{name}]\n", *(f"{option} = {value}\n" for option, value in options.items())])


def marked(programs: Mapping[str, Mapping[str, str]], marks: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return `programs` with other marks of their slots, program name -> mark."""
    return {
        name: {**options, **({MARK: marks[name]} if name in marks else {})}
        for name, options in programs.items()
    }


@dataclass(frozen=True)
class Program:
    """One service as supervisor shall run it; times in seconds."""

    name: str
    command: str
    directory: str
    log_file: str
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_timeout: int = 10
    start_seconds: int = 1
    priority: int = 500
    log_bytes: int = 20_000_000
    log_backups: int = 3
    # The mark of its slot; empty when it has none. supervisord does not read it.
    mark: str = ""

    def section(self) -> str:
        """Return the program's section of a set's file.

        Raises:
            ValueError: the command or a variable cannot be written down.
        """
        return section(self.name, {**self._options(), **({MARK: self.mark} if self.mark else {})})

    def _options(self) -> dict[str, str]:
        if _UNWRITABLE.search(self.command):
            raise ValueError(f"{self.name}: the command holds {_UNWRITABLE_TEXT}")
        return {
            "command": self.command.replace("%", "%%"),
            "directory": self.directory.replace("%", "%%"),
            "environment": self._environment(),
            "priority": str(self.priority),
            # Started by the role, in order, and never all at once by a supervisord that comes up.
            "autostart": "false",
            "autorestart": "true",
            "startsecs": str(self.start_seconds),
            # Never given up: the pause between two attempts grows by a second each time.
            "startretries": "1000",
            "stopsignal": self.stop_signal,
            "stopwaitsecs": str(self.stop_timeout),
            # Only the main process is asked to stop (a worker's children then finish their tasks); after
            # the time-out the whole group is killed.
            "stopasgroup": "false",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": self.log_file.replace("%", "%%"),
            "stdout_logfile_maxbytes": str(self.log_bytes),
            "stdout_logfile_backups": str(self.log_backups),
        }

    def _environment(self) -> str:
        pairs = []
        for name, value in sorted(self.environment.items()):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{self.name}: {name!r} is not the name of an environment variable")
            try:
                pairs.append(f"{name}={quote(value)}")
            except ValueError as error:
                message = f"{self.name}: the value of {name} {error}; put it into a file the service reads"
                raise ValueError(message) from None
        return ",".join(pairs)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self._path = path
        self._timeout = timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:  # noqa: ARG002
        return _UnixConnection(self._path, self._timeout)


@dataclass(frozen=True)
class State:
    """What supervisord says of one program; times in seconds since the epoch, 0 for never."""

    name: str
    state: str
    pid: int
    started: int
    stopped: int
    uptime: int
    exit_status: int
    error: str
    log_file: str

    @property
    def alive(self) -> bool:
        """Whether it runs or is about to."""
        return self.state in _ALIVE

    @property
    def has_process(self) -> bool:
        """Whether it has not ended yet."""
        return self.alive or self.state == "STOPPING"

    @property
    def needs_stop(self) -> bool:
        """Whether it has to be stopped before it can be forgotten: BACKOFF is between two attempts."""
        return self.has_process or self.state == "BACKOFF"


class Supervisor:
    """The supervisord of one cluster, spoken to over its socket. Each call ends after `timeout` seconds."""

    def __init__(self, layout: Layout, timeout: float = 10.0) -> None:
        self.layout = layout
        transport = _UnixTransport(str(layout.socket), timeout)
        self._server = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=transport)

    def _call(self, method: str, *arguments: object) -> Any:
        return getattr(self._server.supervisor, method)(*arguments)

    def pid(self) -> int:
        """Return supervisord's process id, or 0 when none answers."""
        try:
            return cast("int", self._call("getPID"))
        except (OSError, http.client.HTTPException):
            return 0

    def states(self) -> dict[str, State]:
        """Return program name -> state, for every program that supervisord has."""
        return {info["name"]: _state(info) for info in self._call("getAllProcessInfo")}

    def reread(self) -> tuple[set[str], set[str], set[str]]:
        """Read the files again; return the names of the programs that are new, changed and gone.

        Raises:
            xmlrpc.client.Fault: with FAULT_CANNOT_REREAD, the files cannot be used.
        """
        (added, changed, removed) = self._call("reloadConfig")[0]
        return set(added), set(changed), set(removed)

    def priorities(self) -> dict[str, int]:
        """Return program name -> priority, as the files say."""
        return {info["name"]: info["process_prio"] for info in self._call("getAllConfigInfo")}

    def add(self, name: str) -> None:
        """Take over the configuration of a program; it is not started."""
        self._tolerating(_FAULT_ALREADY_ADDED, "addProcessGroup", name)

    def remove(self, name: str) -> None:
        """Forget a program that is stopped."""
        self._tolerating(_FAULT_BAD_NAME, "removeProcessGroup", name)

    def shut_down(self, timeout: float) -> None:
        """End supervisord, whose programs are stopped, and wait at most `timeout` seconds for that.

        Raises:
            SupervisorError: it is still there.
        """
        pid = self.pid()
        if not pid:
            return
        self._call("shutdown")
        if not wait_until(lambda: describe(pid) is None, timeout):
            raise SupervisorError(f"supervisord (process {pid}) did not end within {timeout:.0f} s")

    def retire(self, names: Iterable[str]) -> None:
        """Ask programs to end, and do not wait: each may take its whole stop time-out."""
        for name in names:
            self._tolerating(_FAULT_NOT_RUNNING, "stopProcess", name, _NO_WAIT)

    def stop(self, names: Iterable[str], grace: float = 15.0) -> None:
        """Stop programs, those of the highest priority number first, the ones of one number together.

        Each has its own stop time-out, after which supervisord kills it; then it has `grace` seconds more.

        Raises:
            ProgramFailedError: one did not stop in its time.
        """
        for wave in reversed(waves(names, self.priorities())):
            for name in wave:
                self._tolerating(_FAULT_NOT_RUNNING, "stopProcess", name, _NO_WAIT)
            self._wait_stopped(wave, grace)

    def discard(self, set_name: str, names: Iterable[str]) -> None:
        """Retire programs that did not prove themselves, and remove those that end soon."""
        names = set(names)
        programs = self.layout.programs(set_name)
        self.layout.write(set_name, marked(programs, dict.fromkeys(names, RETIRED)))
        self.retire(names)

        def left() -> set[str]:
            return {name for name, state in self.states().items() if name in names and state.needs_stop}

        wait_until(lambda: not left(), DISCARD_GRACE)
        ended = names - left()
        programs = self.layout.programs(set_name)
        self.layout.write(set_name, {n: options for n, options in programs.items() if n not in ended})
        self.reread()
        for name in ended:
            self.remove(name)

    def _wait_stopped(self, names: list[str], grace: float) -> None:
        longest = self._longest("stopwaitsecs", names)

        def running() -> list[str]:
            states = self.states()
            return [name for name in names if name in states and states[name].needs_stop]

        if not wait_until(lambda: not running(), longest + grace):
            name = running()[0]
            raise ProgramFailedError(name, f"{name} did not stop within {longest} s, nor when it was killed")

    def start(self, names: Iterable[str], timeout: float) -> None:
        """Start programs, those of the lowest priority number first, the ones of one number together.

        Returns when each stayed up for its ``startsecs``; those that run already only have to go on. Each may
        need `timeout` seconds in addition.

        Raises:
            ProgramFailedError: one did not stay up.
        """
        for wave in waves(names, self.priorities()):
            states = self.states()
            logs = {name: size(states[name].log_file) for name in wave}
            try:
                for name in wave:
                    if not states[name].alive:
                        self._start(name, states[name])
                self._wait_running(wave, timeout)
            except ProgramFailedError as error:
                error.log_start = logs[error.program]
                raise

    def _start(self, name: str, state: State) -> None:
        if state.state == "BACKOFF":
            # It would count as started and sit out its pause; stopping ends the pause.
            self._tolerating(_FAULT_NOT_RUNNING, "stopProcess", name, _NO_WAIT)
        try:
            self._call("startProcess", name, _NO_WAIT)
        except xmlrpc.client.Fault as fault:
            # A first attempt that ended at once is followed by others, which are waited for.
            if fault.faultCode not in {_FAULT_ALREADY_STARTED, _FAULT_SPAWN_ERROR}:
                raise ProgramFailedError(name, f"{name} cannot be started: {fault.faultString}") from None

    def _wait_running(self, names: list[str], timeout: float) -> None:
        longest = self._longest("startsecs", names)
        failures: dict[str, set[int]] = {name: set() for name in names}

        def all_running() -> bool:
            states = self.states()
            for name in names:
                _check_up(states[name], failures[name])
            return all(states[name].state == "RUNNING" for name in names)

        if not wait_until(all_running, longest + timeout):
            states = self.states()
            name = next(name for name in names if states[name].state != "RUNNING")
            message = f"{name} is {states[name].state} after {longest + timeout:.0f} s. {states[name].error}"
            raise ProgramFailedError(name, message.strip())

    def _longest(self, option: str, names: Iterable[str]) -> int:
        """Return the largest value of an option in seconds among the programs `names`."""
        configured = {info["name"]: info[option] for info in self._call("getAllConfigInfo")}
        # A program whose section is gone already: as long as the longest of all.
        fallback = max(configured.values(), default=60)
        return max((int(configured.get(name, fallback)) for name in names), default=0)

    def _tolerating(self, fault_code: int, method: str, *arguments: object) -> None:
        try:
            self._call(method, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != fault_code:
                raise


def _check_up(state: State, failures: set[int]) -> None:
    """Note a failed attempt in `failures`; raise ProgramFailedError when there were enough of them."""
    if state.state in {"BACKOFF", "EXITED"}:
        failures.add(state.stopped)
    if state.state == "FATAL" or len(failures) >= _ATTEMPTS:
        message = f"{state.name} does not stay up: {state.error or 'it ended'}"
        if state.exit_status:
            message += f" (exit status {state.exit_status})"
        raise ProgramFailedError(state.name, message)


def _state(info: Mapping[str, Any]) -> State:
    alive = info["statename"] in _ALIVE
    return State(
        name=info["name"],
        state=info["statename"],
        pid=info["pid"],
        started=info["start"],
        stopped=info["stop"],
        uptime=max(0, info["now"] - info["start"]) if alive else 0,
        exit_status=info["exitstatus"],
        error=info["spawnerr"],
        log_file=info["stdout_logfile"],
    )


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Ask for `condition` until it holds or `timeout` seconds have passed; tell which."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def clean_environment(home: str) -> dict[str, str]:
    """Return the environment supervisord starts with, and its programs inherit.

    Nothing of the caller's: a PYTHONPATH or RABBITMQ_* variable of the shell must not change the cluster.
    """
    try:
        account = pwd.getpwuid(os.geteuid())
        user, user_home = account.pw_name, account.pw_dir
    except KeyError:
        # A numeric user without an account, as in some containers.
        user, user_home = str(os.geteuid()), home
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": user_home,
        "USER": user,
        "LOGNAME": user,
        "LANG": "C.UTF-8",
        MARKER: home,
    }
