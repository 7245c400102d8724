"""What a comparison is made of, without running one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from clusterkit.ops.compare import measure, picture, reading, report, tables, works
from clusterkit.ops.compare.figures import Compared, Comparison, Figure
from clusterkit.ops.compare.site import page
from clusterkit.ops.compare.variants import VARIANTS, chosen
from clusterkit.runtime.errors import BadInputError
from tasks import comparison, comparison_app

MEGABYTES = 1_000_000


def figure(name: str, seconds: float, **values: object) -> Figure:
    variant = next(variant for variant in VARIANTS if variant.name == name)
    base = {"at_once": 2, "calls": 100, "processor": 0.015, "memory": 20 * MEGABYTES, "problem": ""}
    return Figure(name, variant.title, variant.kind, seconds=seconds, **{**base, **values})  # type: ignore[arg-type]


def comparison_of(*figures: Figure) -> Comparison:
    work = Compared("primes", "cpu", "count the primes <here>", figures)
    found = Comparison(0.0, 2, 3, {"processor": "a processor", "Python": "3.11"}, (work,))
    return Comparison(0.0, 2, 3, found.machine, found.works, tuple(reading.sentences(found)))


QUIET = comparison_of(
    figure("plain", 1.5, at_once=1, memory=11 * MEGABYTES),
    figure("threading", 1.6),
    figure("multiprocessing", 0.8, processor=0.0155),
    figure("prefork", 0.82, processor=0.016, servers=0.001, memory=130 * MEGABYTES),
    figure("gevent", 1.7, servers=0.001),
)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[]", ((),)),
        ("[30]", ((30,),)),
        ('["a", [1, 2]]', (("a", [1, 2]),)),
        ("[[30], [31, 2]]", ((30,), (31, 2))),
        ("[[[1, 2]]]", (([1, 2],),)),
    ],
)
def test_a_list_is_the_arguments_of_every_call_and_a_list_of_lists_those_of_several(
    text: str, calls: tuple[tuple[object, ...], ...]
) -> None:
    assert works.read_calls(text) == calls


@pytest.mark.parametrize("text", ["[30", "30", '{"n": 30}'])
def test_arguments_that_are_no_json_list_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="ARGS is"):
        works.read_calls(text)


@pytest.mark.parametrize(
    "name", ["tasks.comparison", "nowhere:function", "tasks.comparison:nothing", "a b:c"]
)
def test_a_function_that_cannot_be_used_is_refused_with_the_form_or_the_reason(name: str) -> None:
    with pytest.raises(BadInputError, match=r"module:function|cannot be used"):
        works.own(name, "[]", None)


def test_a_function_of_the_readers_gets_its_calls_in_turn() -> None:
    work = works.own("tasks.comparison:count_primes", "[[0, 3], [0, 4]]", 5)
    assert work.calls == ((0, 3), (0, 4), (0, 3), (0, 4), (0, 3))


@pytest.mark.parametrize(("seconds", "count"), [(0.015, 100), (0.0, 200), (0.001, 200), (60.0, 4)])
def test_as_many_calls_as_make_a_comparison(seconds: float, count: int) -> None:
    assert works.own_count(seconds) == count


def test_the_plain_loop_is_always_there_and_an_unknown_system_is_named() -> None:
    assert [variant.name for variant in chosen(["prefork", "ppft"])] == ["plain", "ppft", "prefork"]
    assert chosen([]) == VARIANTS
    with pytest.raises(BadInputError, match="Did you mean 'threading'"):
        chosen(["threadin"])


def test_calls_at_once_are_what_auto_means_or_what_is_wanted() -> None:
    auto = {variant.name: variant.at_once(2) for variant in VARIANTS}
    assert auto == {
        "plain": 1,
        "threading": 10,
        "multiprocessing": 2,
        "ppft": 2,
        "prefork": 2,
        "threads": 10,
        "gevent": 100,
        "eventlet": 100,
        "solo": 1,
    }
    assert {variant.at_once(2, 7) for variant in VARIANTS if variant.kind != "one at a time"} == {7}


def test_the_reading_follows_from_the_figures() -> None:
    (said,) = QUIET.reading
    assert "bound by the processor" in said
    assert "multiprocessing and Celery prefork are fastest, 1.9 times the plain loop" in said
    assert "keeps 1.9 of 2 cores busy" in said
    assert "threading and Celery gevent gain little or nothing" in said
    assert "Celery prefork takes 1.0 ms of CPU a call more than the plain loop" in said


def test_on_a_busy_machine_nothing_is_said_about_who_is_fastest() -> None:
    said = comparison_of(figure("plain", 3.0, queued=1.4), figure("threading", 1.0)).reading
    assert "waited up to 47% of its time" in said[0]
    assert not any("fastest," in sentence for sentence in said[1:])


def test_a_variant_with_other_results_is_a_problem_and_no_winner() -> None:
    found = comparison_of(
        figure("plain", 1.5), figure("threading", 1.4), figure("ppft", 0.1, problem="3 results differ")
    )
    assert found.problems == ["primes, Parallel Python: 3 results differ"]
    assert not any("Parallel Python" in sentence for sentence in found.reading)


def test_a_variant_that_could_not_run_has_no_figures_in_any_form(tmp_path: Path) -> None:
    found = comparison_of(figure("plain", 1.5), figure("ppft", 0.0, problem="no answer within 60 s"))
    report.write(found, tmp_path)
    assert tables.cells(found.works[0], found.works[0].figures[1])[-1] == "failed"
    assert "no answer within 60 s" in (tmp_path / report.PAGE).read_text()


def test_the_report_holds_every_figure_and_needs_nothing_else(tmp_path: Path) -> None:
    report.write(QUIET, tmp_path)
    rows = list(csv.DictReader((tmp_path / report.TABLE).open()))
    assert [(row["variant"], row["times_plain"]) for row in rows][2] == ("multiprocessing", "1.875")
    assert len(json.loads((tmp_path / report.DATA).read_text())["works"][0]["figures"]) == 5
    html = (tmp_path / report.PAGE).read_text()
    assert "&lt;here&gt;" in html
    assert "<here>" not in html
    assert not {"<script", "src=", "href="} & set(html.split())


def test_the_picture_is_svg_with_a_bar_for_each_variant_and_figure() -> None:
    root = ET.fromstring(picture.svg(QUIET))  # noqa: S314 - made here
    bars = [one for one in root.iter() if one.get("class") in {"plain", "local", "celery"}]
    assert len(bars) == 3 * len(QUIET.works[0].figures)
    assert "green: Celery's pools" in "".join(root.itertext())


def test_a_pool_of_celery_is_one_also_where_its_servers_took_no_time_that_could_be_seen() -> None:
    found = picture.svg(comparison_of(figure("plain", 1.5), figure("solo", 1.6)))
    assert 'class="celery"' in found
    assert 'class="local"' not in found
    celery = comparison_of(figure("plain", 1.5), figure("prefork", 0.8)).works[0].figures[1]
    assert (celery.celery, figure("ppft", 0.8).celery) == (True, False)


def test_fewer_results_than_the_plain_loops_are_a_problem() -> None:
    def place(*digests: str) -> measure._Place:
        child: Any = SimpleNamespace(ask=lambda *_: {"digests": list(digests)})
        return measure._Place(VARIANTS[0], child, [], [])

    plain = place("a", "b")
    problems = []
    for other in (plain, place("a", "b"), place("a"), place("a", "c")):
        measure._look_at_results(other, plain)
        problems.append(other.problem)
    assert problems == [
        "",
        "",
        "1 results, not the plain loop's 2",
        "1 of 2 results differ from the plain loop's, that of call 2 first",
    ]


def test_the_work_is_what_it_says() -> None:
    assert comparison.count_primes(0, 100) == 25
    row = comparison.mandelbrot_row(50, 100, 60)
    assert (len(row), max(row), min(row) < 5) == (comparison.ROW_PIXELS, 60, True)
    assert 'href="/0"' in page(3, 4)


def test_the_worker_calls_nothing_that_make_compare_has_not_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERKIT_HOME", str(tmp_path))
    comparison_app._allow.cache_clear()
    with pytest.raises(PermissionError, match="os:getcwd may not be called here"):
        comparison_app.call("os:getcwd", [])
    allowed = {"functions": ["tasks.comparison:count_primes"], "paths": []}
    (tmp_path / comparison_app.ALLOWED_FILE).write_text(json.dumps(allowed))
    assert comparison_app.call("tasks.comparison:count_primes", [0, 10]) == 4
    with pytest.raises(PermissionError):
        comparison_app.call("os:getcwd", [])
    comparison_app._allow.cache_clear()
