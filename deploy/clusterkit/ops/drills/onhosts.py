"""What a drill does on hosts, as shell scripts that Ansible runs: kill, restart, cut off, raise alarms."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Final, Literal

from clusterkit.ops import deployment
from clusterkit.ops.errors import DeployError

if TYPE_CHECKING:
    from clusterkit.ops.model import Cluster

#: Seconds after which a host undoes a fault by itself, should the drill be gone.
SAFETY: Final = 300
_TASK: Final = "Run the host's script"
_UNDO_UNIT: Final = "clusterkit-fault-undo"
_TABLE: Final = "clusterkit_fault"


@dataclass(frozen=True)
class Blow:
    """When scripts did their work, on the first host and on the last, and what each printed."""

    begin: float
    end: float
    printed: dict[str, str]


class Hosts:
    """The hosts of a cluster, for scripts."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def run(self, scripts: dict[str, str], undo: dict[str, str] | None = None) -> Blow:
        """Run each host's script, on all of them at once.

        Where ``undo`` has a script, the host runs it by itself after SAFETY seconds unless `undo` came first.

        Raises:
            DeployError: a script failed, or a host cannot be reached.
        """
        whole = {
            host: "\n".join(
                (
                    "set -e",
                    self._safety_net(undo[host]) if undo and host in undo else "",
                    "date +%s.%N",
                    script,
                    "date +%s.%N",
                )
            )
            for host, script in scripts.items()
        }
        outcome = deployment.ask(self._cluster, "fault", {"fault_scripts": whole})
        if outcome.failures:
            raise DeployError(
                "a drill could not do what it should:\n" + "\n".join(map(str, outcome.failures)),
                next_step=f"make cluster-status CLUSTER={self._cluster.name}",
            )
        lines = {host: result["stdout"].splitlines() for host, result in outcome.of(_TASK).items()}
        return Blow(
            begin=min(float(each[0]) for each in lines.values()),
            end=max(float(each[-1]) for each in lines.values()),
            printed={host: "\n".join(each[1:-1]) for host, each in lines.items()},
        )

    def undo(self, scripts: dict[str, str]) -> Blow:
        """Run scripts that undo a fault, and take back what the hosts would do by themselves."""
        return self.run({host: f"{script}\n{self._no_safety_net()}" for host, script in scripts.items()})

    def _safety_net(self, script: str) -> str:
        if self._cluster.tls:
            return (
                f"systemd-run --quiet --collect --unit={_UNDO_UNIT} --on-active={SAFETY}"
                f" /bin/sh -c {quote(script)}"
            )
        waits = f"echo $$ >{self._pid_file}; sleep {SAFETY}; {script}"
        return f"setsid /bin/sh -c {quote(waits)} </dev/null >/dev/null 2>&1 &"

    def _no_safety_net(self) -> str:
        if self._cluster.tls:
            return f"systemctl stop {_UNDO_UNIT}.timer 2>/dev/null || true"
        return f"kill -s TERM -- -$(cat {self._pid_file}) 2>/dev/null || true; rm -f {self._pid_file}"

    @property
    def _pid_file(self) -> str:
        return quote(str(self._cluster.home / "fault.pid"))

    def _serving(self, service: str) -> str:
        """Return what a shell turns into the slot of a service that serves: worker-cpu.b for worker-cpu."""
        if self._cluster.tls:
            units = f"clusterkit-{service}.service 'clusterkit-{service}.?.service'"
            found = (
                f"systemctl list-units --plain --no-legend --state=active {units} | cut -d ' ' -f 1 | head -1"
            )
            return f'"$({found} | grep . || echo clusterkit-{service}.service)"'
        pattern = f"^{service}(\\.[a-z])? +RUNNING"
        found = f"{self._command('supervisorctl')} status | grep -E '{pattern}' | cut -d ' ' -f 1 | head -1"
        return f'"$({found} | grep . || echo {service})"'

    def _main_process(self, service: str) -> str:
        if self._cluster.tls:
            return f"systemctl show --property MainPID --value {self._serving(service)}"
        return f"{self._command('supervisorctl')} pid {self._serving(service)}"

    def _command(self, name: str) -> str:
        return quote(str(self._cluster.home / "bin" / name))

    def kill(self, service: str) -> str:
        """Return a script that kills all processes of a service."""
        if self._cluster.tls:
            return f"systemctl kill --kill-whom=all --signal=KILL {self._serving(service)}"
        return f"kill -s KILL -- -$({self._main_process(service)})"  # the supervisor gives each its own group

    def kill_children(self, service: str, times: int) -> str:
        """Return a script that kills a pool process of a worker node, again and again, another each time."""
        return f"""\
for turn in $(seq {times}); do
  main=$({self._main_process(service)})
  # The pool notices a dead process every 5 s; until then there may be none.
  for look in $(seq 50); do
    set -- $(cat /proc/"$main"/task/*/children)
    [ $# = 0 ] || break
    sleep 0.2
  done
  shift $((turn % $#))
  echo "killed process $1 of {service}"
  kill -KILL "$1"
  sleep 0.7
done"""

    def restart(self, service: str) -> str:
        """Return a script that restarts a service, gracefully."""
        if self._cluster.tls:
            return f"systemctl restart {self._serving(service)}"
        return f"{self._command('supervisorctl')} restart {self._serving(service)}"

    def cut_off(self, addresses: list[str]) -> str:
        """Return a script that drops whatever comes from or goes to ``addresses``, without a word."""
        rules: dict[str, list[str]] = {"input": [], "output": []}
        for address in addresses:
            family = "ip6" if ipaddress.ip_address(address).version == 6 else "ip"  # noqa: PLR2004
            rules["input"].append(f"{family} saddr {address} drop")
            rules["output"].append(f"{family} daddr {address} drop")
        chains = "\n".join(
            f"chain {hook} {{ type filter hook {hook} priority -300; {'; '.join(found)}; }}"
            for hook, found in rules.items()
        )
        return f"nft -f - <<'RULES'\ntable inet {_TABLE} {{\n{chains}\n}}\nRULES"

    def join_again(self) -> str:
        """Return the script that undoes `cut_off`."""
        return f"nft delete table inet {_TABLE} 2>/dev/null || true"

    def alarm(self, resource: Literal["memory", "disk"], *, on: bool) -> str:
        """Return a script that sets or clears an alarm of the host's broker node, as its own monitors do."""
        alarm = f"{{resource_limit, {resource}, node()}}"
        # With a blank: two braces would be a template to Ansible.
        do = f"set_alarm({{ {alarm}, []}})" if on else f"clear_alarm({alarm})"
        return f"{self._command('rabbitmqctl')} --quiet eval 'rabbit_alarm:{do}.'"

    def last_lock(self) -> str:
        """Return a script that prints when the host's scheduler last got the schedule's lock."""
        return (
            "journalctl --unit clusterkit-scheduler --output short-unix --no-pager --quiet"
            " | grep -i 'acquired lock' | tail -n 1 | cut -d' ' -f1"
        )
