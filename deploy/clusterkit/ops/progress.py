"""What a person sees while the kit works: phases, what each is doing, and for how long.

On a terminal the table is drawn again and again in place; elsewhere each step is one plain line, so that
a log stays readable.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.console import Console, RenderableType

REFRESHES_PER_SECOND = 8


@dataclass
class _Phase:
    name: str
    started: float | None = None
    ended: float | None = None
    failed: bool = False
    changes: int = 0
    doing: str = ""

    def seconds(self, now: float) -> float:
        return 0.0 if self.started is None else (self.ended or now) - self.started


class Progress:
    """Phases in the order they run; use as a context manager around the work."""

    def __init__(self, title: str, phases: Sequence[str], console: Console) -> None:
        self._title = title
        self._phases = [_Phase(name) for name in phases]
        self._console = console
        self._began = time.monotonic()
        self._current: _Phase | None = None
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(self, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=False)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        else:
            self._print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._current:
            self._end(failed=kind is not None)
        if self._live:
            self._live.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._began

    @property
    def changes(self) -> int:
        """How many steps changed something so far."""
        return sum(phase.changes for phase in self._phases)

    def start(self, name: str) -> None:
        """Begin the phase ``name``, which ends the one before; go on with it when it is the current one."""
        if self._current and self._current.name == name:
            return  # a play that takes its hosts one by one begins once for each
        self._end()
        phase = next((phase for phase in self._phases if phase.name == name), None)
        if phase is None:
            phase = _Phase(name)
            self._phases.append(phase)
        # One that comes again, for other hosts, goes on.
        phase.started, phase.ended = phase.started or time.monotonic(), None
        self._current = phase
        if not self._live:
            self._print(f"{name}")

    def doing(self, what: str) -> None:
        """Say what the current phase is at; as a line of its own only `done` tells it."""
        if self._current:
            self._current.doing = what

    def done(self, what: str, *, changed: bool = False) -> None:
        """Say that a step is through, and count it if it changed something."""
        if self._current and changed:
            self._current.changes += 1
        if not self._live:
            self._print(f"  {'changed' if changed else 'ok':7} {what}")

    def _end(self, *, failed: bool = False) -> None:
        if self._current and self._current.ended is None:
            self._current.ended = time.monotonic()
            self._current.failed = failed

    def _print(self, line: str) -> None:
        self._console.print(f"[{self.seconds:6.1f} s] {line}", markup=False, highlight=False, soft_wrap=True)

    def __rich__(self) -> RenderableType:
        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        for width, justify in ((1, "left"), (14, "left"), (8, "right")):
            table.add_column(width=width, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.title = f"[bold]{self._title}[/]  {self.seconds:.0f} s"
        table.title_justify = "left"
        for phase in self._phases:
            table.add_row(*self._row(phase, now))
        return table

    def _row(self, phase: _Phase, now: float) -> tuple[RenderableType, ...]:
        if phase.started is None:
            return Text(" "), Text(phase.name, style="dim"), Text(""), Text("")
        took = Text(f"{phase.seconds(now):.1f} s")
        if phase.ended is None:
            return self._spinner, Text(phase.name, style="bold"), took, Text(phase.doing, style="cyan")
        if phase.failed:
            return Text("✘", style="red"), Text(phase.name), took, Text(phase.doing, style="red")
        note = f"{phase.changes} changed" if phase.changes else "unchanged"
        return Text("✔", style="green"), Text(phase.name), took, Text(note, style="dim")
