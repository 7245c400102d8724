"""The picture of a comparison: for each work bars of throughput, processor time a call, and memory.

SVG that needs nothing else; it brings its own colours, for light and dark grounds.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from clusterkit.ops.compare import tables
from clusterkit.ops.compare.figures import MEGABYTE
from clusterkit.ops.compare.variants import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from clusterkit.ops.compare.figures import Compared, Comparison, Figure

_WIDTH, _NAMES, _GAP, _VALUE = 960, 150, 14, 84
_ROW, _BAR, _HEAD, _FOOT = 19, 13, 50, 18
_TOP: Final = 10
_LEGEND: Final = "grey: the plain loop; blue: this machine's own systems; green: Celery's pools"

#: A panel of bars: its title, the value of a bar, the part of it in another colour, and how it is written.
_PANELS: Final[tuple[tuple[str, Callable[[Figure], float], Callable[[Figure], float], str], ...]] = (
    ("calls a second", lambda figure: figure.rate, lambda _: 0.0, "{:.1f}"),
    (
        "CPU ms a call (pale: broker, results)",
        lambda figure: 1000 * (figure.processor + figure.servers),
        lambda figure: 1000 * figure.servers,
        "{:.1f}",
    ),
    ("memory MB", lambda figure: figure.memory / MEGABYTE, lambda _: 0.0, "{:.0f}"),
)
_STYLE: Final = """
.cmp { --ground:#fff; --ink:#1b1f24; --soft:#59636e; --line:#d6dbe1; --plain:#8b949e; --local:#0b63ce;
       --celery:#1a7f37; --bad:#c62828; font:12px system-ui,sans-serif }
@media (prefers-color-scheme: dark) { .cmp { --ground:#0f1318; --ink:#e4e8ed; --soft:#98a3af; --line:#2c343d;
       --plain:#8b949e; --local:#6cb2ff; --celery:#4ac26b; --bad:#ff7b72 } }
.cmp .ground { fill:var(--ground) } .cmp text { fill:var(--soft) } .cmp .name, .cmp .title { fill:var(--ink) }
.cmp .title { font-size:14px; font-weight:600 } .cmp .bad { fill:var(--bad) }
.cmp .plain { fill:var(--plain) } .cmp .local { fill:var(--local) } .cmp .celery { fill:var(--celery) }
.cmp .servers { fill:var(--ground); fill-opacity:.55 } .cmp .one { stroke:var(--ink); stroke-dasharray:2 3 }
"""


def svg(comparison: Comparison) -> str:
    """Return the picture of ``comparison``."""
    parts, top = [], _TOP
    for compared in comparison.works:
        parts.append(_work(compared, top))
        top += _HEAD + _ROW * len(compared.figures) + _FOOT
    busy = [work.work for work in comparison.works if not work.quiet]
    note = f"; the machine was busy: do not compare the rates of {', '.join(busy)}" if busy else ""
    for line in (_LEGEND, *_wrapped(f"{tables.machine(comparison)}{note}")):
        parts.append(f'<text x="4" y="{top + 4}">{escape(line)}</text>')
        top += 15
    works = ", ".join(compared.work for compared in comparison.works)
    label = f"{works} under each system: calls a second, CPU time a call, memory"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cmp" viewBox="0 0 {_WIDTH} {top + 4}" role="img"'
        f' aria-label="{escape(label)}"><style>{_STYLE}</style>'
        f'<rect class="ground" width="{_WIDTH}" height="{top + 4}"/>{"".join(parts)}</svg>\n'
    )


def _work(compared: Compared, top: int) -> str:
    parts = [f'<text class="title" x="4" y="{top + 14}">{escape(tables.caption(compared))}</text>']
    first = top + _HEAD
    for row, figure in enumerate(compared.figures):
        y = first + row * _ROW + _BAR - 2
        name = f"{figure.title} x{figure.at_once}"
        parts.append(f'<text class="name" x="{_NAMES - 8}" y="{y}" text-anchor="end">{escape(name)}</text>')
        if figure.problem:
            text = escape(figure.problem[:60])
            parts.append(f'<text class="bad" x="{_NAMES + _panel_width()}" y="{y}">{text}</text>')
    parts += [_panel(compared, number, first) for number in range(len(_PANELS))]
    return "".join(parts)


def _panel_width() -> float:
    return (_WIDTH - _NAMES) / len(_PANELS)


def _panel(compared: Compared, number: int, first: int) -> str:
    title, value, part, form = _PANELS[number]
    left = _NAMES + number * _panel_width()
    room = _panel_width() - _GAP - _VALUE
    most = max((value(figure) for figure in compared.ran), default=0.0) or 1.0
    parts = [f'<text x="{left:.1f}" y="{first - 10}">{title}</text>']
    for row, figure in enumerate(compared.figures):
        if not figure.ran or figure.problem:
            continue
        y, width = first + row * _ROW, value(figure) / most * room
        pale = part(figure) / most * room
        parts.append(
            f'<rect class="{_colour(figure)}" x="{left:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}"/>'
        )
        if pale:
            x = left + width - pale
            parts.append(f'<rect class="servers" x="{x:.1f}" y="{y}" width="{pale:.1f}" height="{_BAR}"/>')
        text = form.format(value(figure))
        if not number:
            text = f"{text} ({compared.times(figure):.1f}x)"
        parts.append(f'<text x="{left + width + 4:.1f}" y="{y + _BAR - 2}">{text}</text>')
    if not number:  # as fast as the plain loop
        x = left + value(compared.plain) / most * room
        bottom = first + _ROW * len(compared.figures) - 4
        parts.append(f'<line class="one" x1="{x:.1f}" x2="{x:.1f}" y1="{first - 4}" y2="{bottom}"/>')
    return "".join(parts)


def _colour(figure: Figure) -> str:
    if figure.celery:
        return "celery"
    return "plain" if figure.variant == PLAIN else "local"


def _wrapped(text: str, width: int = 150) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
