"""The picture of a drill: confirmed and executed by the second, the delay below, the fault as a band.

Inline SVG without a script or an outside resource; its colours are the page's variables.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clusterkit.ops.drills.outcome import Outcome

_WIDTH, _LEFT, _RIGHT = 720, 44, 8
#: Top and height of the two panels.
_RATE, _DELAY = (22, 130), (186, 90)
_HEIGHT: Final = 306
_TICKS: Final = 8


def svg(outcome: Outcome) -> str:
    """Return the picture of ``outcome``."""
    line = outcome.timeline
    seconds = max(len(line.confirmed), 1)
    rate = _nice(max([*line.confirmed, *line.executed, *line.refused, 1]))
    delay = _nice(max([each for each in line.delay if each is not None] + [0.1]))
    begin, end = outcome.window.begin - line.begin, outcome.window.end - line.begin
    parts = [
        _band(begin, end, seconds),
        _axis(_RATE, rate, "tasks/s"),
        _axis(_DELAY, delay, "delay, s (95 %)"),
        _time_axis(seconds),
        _steps("executed", line.executed, seconds, rate, _RATE),
        _steps("confirmed", line.confirmed, seconds, rate, _RATE),
        _bars("refused", line.refused, seconds, rate, _RATE),
        _dots("delay", line.delay, seconds, delay, _DELAY),
    ]
    label = f"{outcome.fault}: tasks confirmed and executed a second, and their delay"
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def _nice(value: float) -> float:
    """Return the next round number, for the top of an axis."""
    size = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 0.1
    for step in (1, 2, 3, 4, 5, 6, 8, 10, 20):
        if value <= step * size:
            return round(step * size, 3)
    return value


def _x(second: float, seconds: int) -> float:
    return _LEFT + min(max(second, 0), seconds) / seconds * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float, panel: tuple[int, int]) -> float:
    return panel[0] + panel[1] * (1 - min(value / top, 1))


def _band(begin: float, end: float, seconds: int) -> str:
    left, right = _x(begin, seconds), _x(end, seconds)
    bottom = _DELAY[0] + _DELAY[1]
    anchor = "end" if left > _WIDTH * 0.8 else "start"
    # Both markers, as a blow has no width.
    lines = "".join(
        f'<line class="fault" x1="{x:.1f}" x2="{x:.1f}" y1="{_RATE[0] - 6}" y2="{bottom}"/>'
        for x in sorted({round(left, 1), round(right, 1)})
    )
    return (
        f'<rect class="band" x="{left:.1f}" y="{_RATE[0]}" width="{max(right - left, 1):.1f}"'
        f' height="{bottom - _RATE[0]}"/>{lines}'
        f'<text class="mark" x="{left:.1f}" y="{_RATE[0] - 9}" text-anchor="{anchor}">'
        f"fault {begin:.0f} to {end:.0f} s</text>"
    )


def _axis(panel: tuple[int, int], top: float, name: str) -> str:
    lines = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in (0, top / 2, top)
        for y in (_y(value, top, panel),)
    )
    return f'{lines}<text class="name" x="2" y="{panel[0] - 9}">{escape(name)}</text>'


def _time_axis(seconds: int) -> str:
    step = next((each for each in (1, 2, 5, 10, 20, 30, 60, 120) if seconds / each <= _TICKS), 300)
    bottom = _DELAY[0] + _DELAY[1]
    return "".join(
        f'<text x="{_x(at, seconds):.1f}" y="{bottom + 17}" text-anchor="middle">{at} s</text>'
        for at in range(0, seconds, step)
    )


def _steps(kind: str, values: Sequence[int], seconds: int, top: float, panel: tuple[int, int]) -> str:
    points = [
        f"{_x(at + side, seconds):.1f},{_y(value, top, panel):.1f}"
        for at, value in enumerate(values)
        for side in (0, 1)
    ]
    return f'<polyline class="{kind}" points="{" ".join(points)}"/>'


def _bars(kind: str, values: Sequence[int], seconds: int, top: float, panel: tuple[int, int]) -> str:
    floor = panel[0] + panel[1]
    return "".join(
        f'<rect class="{kind}" x="{_x(at, seconds):.1f}" y="{_y(value, top, panel):.1f}"'
        f' width="{max(_x(at + 1, seconds) - _x(at, seconds), 2):.1f}"'
        f' height="{floor - _y(value, top, panel):.1f}"/>'
        for at, value in enumerate(values)
        if value
    )


def _dots(kind: str, values: Sequence[float | None], seconds: int, top: float, panel: tuple[int, int]) -> str:
    floor = panel[0] + panel[1]
    return "".join(
        f'<rect class="{kind}" x="{_x(at, seconds):.1f}" y="{_y(value, top, panel):.1f}"'
        f' width="{max(_x(at + 1, seconds) - _x(at, seconds) - 0.5, 1):.1f}"'
        f' height="{max(floor - _y(value, top, panel), 1):.1f}"/>'
        for at, value in enumerate(values)
        if value is not None
    )
