"""Which version of RabbitMQ may follow which while the cluster runs; all else is refused beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clusterkit.ops.brokerversions import ERLANG, STEPS, Offer, refusals

OFFER = Offer(
    host="h1",
    running="4.0.5",
    installed="4.0.5-6+deb13u2",
    candidate="4.0.5-6+deb13u3",
    order="newer",
    erlang="1:27.3.4.1+dfsg-1",
)


def offer(running: str, candidate: str, erlang: str = "1:26.2.5-1", **more: object) -> Offer:
    changed = {"running": running, "installed": running, "candidate": candidate, "erlang": erlang, **more}
    return replace(OFFER, **changed)  # type: ignore[arg-type]


def test_another_build_of_the_same_version_may_follow() -> None:
    assert refusals([OFFER, replace(OFFER, host="h2")]) == []


@pytest.mark.parametrize(
    ("before", "after", "erlang"),
    [
        ("3.10.8", "3.11.28-1", "25.3"),
        ("3.11.18", "3.12.0-1", "25.3"),
        ("3.12.1", "3.13.7-1", "26.2.5"),
        ("3.13.7", "4.0.5-6", "27.3"),
        ("3.13.7", "4.2.0-1", "27.3"),
        ("4.0.5", "4.2.1-1", "27.3"),
    ],
)
def test_the_documented_steps_are_allowed(before: str, after: str, erlang: str) -> None:
    assert refusals([offer(before, after, f"1:{erlang}+dfsg-1")]) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("4.0.5", "5.0.0-1", "RabbitMQ 5.0.0 may not follow RabbitMQ 4.0.5"),
        ("3.10.8", "4.0.5-6", "next to it are: 3.11"),
        ("3.10.8", "3.12.0-1", "next to it are: 3.11"),
        ("3.12.0", "4.0.5-6", "next to it are: 3.13"),
        ("4.2.1", "4.3.0-1", "this kit knows none that may"),
        ("3.11.9", "3.12.0-1", "may only follow RabbitMQ 3.11.18 or later"),
    ],
)
def test_a_step_that_is_not_documented_is_refused_with_the_next_one(
    before: str, after: str, said: str
) -> None:
    (line,) = refusals([offer(before, after)])
    assert line.startswith("h1: ")
    assert said in line


@pytest.mark.parametrize(
    ("running", "order", "due"),
    [
        ("4.0.5", "newer", True),
        ("4.0.5", "same", False),
        ("4.0.4", "same", True),
        ("4.0.5", "older", False),
    ],
)
def test_a_node_is_due_also_when_the_package_was_upgraded_without_a_restart(
    running: str, order: str, due: bool
) -> None:
    assert offer(running, "4.0.5-6", installed="4.0.5-6", order=order).due is due


def test_a_restart_into_a_version_that_may_not_follow_is_refused() -> None:
    (line,) = refusals([offer("3.12.1", "4.0.5-6", installed="4.0.5-6", order="same")])
    assert "next to it are: 3.13" in line


def test_a_downgrade_is_refused() -> None:
    (line,) = refusals([replace(OFFER, candidate="3.9.0-1", order="older")])
    assert "3.9.0-1 is older than 4.0.5-6+deb13u2" in line
    assert "does not support downgrades" in line


def test_a_feature_flag_that_is_left_is_refused_only_where_the_next_series_needs_it() -> None:
    flags = ("stream_filtering",)
    (line,) = refusals([offer("3.13.7", "4.0.5-6", flags=flags)])
    assert "these are not: stream_filtering" in line
    assert "make broker-restart" in line
    assert refusals([offer("4.0.5", "4.0.9-1", flags=flags)]) == []


def test_an_erlang_that_does_not_fit_is_refused() -> None:
    (old,) = refusals([offer("3.13.7", "4.0.5-6", "1:25.3.2+dfsg-1")])
    assert "needs Erlang 26.2, and would get 1:25.3.2" in old
    (new,) = refusals([offer("3.12.1", "3.13.7-1", "1:27.0+dfsg-1")])
    assert "does not run on Erlang 27" in new


def test_hosts_that_would_get_different_versions_are_refused() -> None:
    (line,) = refusals([OFFER, replace(OFFER, host="h2", candidate="4.0.9-1")])
    assert "h1 4.0.5-6+deb13u3, h2 4.0.9-1" in line


def test_versions_that_run_and_may_not_run_together_are_refused() -> None:
    done = offer("3.12.0", "3.12.0", order="same", host="h1")
    left = offer("3.10.8", "3.12.0", order="same", host="h2")
    assert "RabbitMQ 3.10 and 3.12 run in one cluster, and may not" in refusals([done, left])[0]


def test_an_upgrade_that_was_given_up_goes_on() -> None:
    done = offer("4.0.5", "4.0.5-6", "27.3", order="same", host="h1")
    assert refusals([done, offer("3.13.7", "4.0.5-6", "27.3", host="h2")]) == []


def test_every_series_that_may_be_upgraded_to_has_its_erlang() -> None:
    oldest = min(version for version, _, _ in ERLANG)
    assert all((*after, 0) >= oldest for _, after in STEPS)
