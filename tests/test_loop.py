"""When the loop returns, and what is due then."""

from __future__ import annotations

import pytest

from trainer import loop


@pytest.mark.parametrize(
    ("step", "every", "last", "due"),
    [(10, 5, 100, True), (11, 5, 100, False), (100, 30, 100, True), (90, 30, 100, True)],
)
def test_what_is_due_after_a_step(step, every, last, due):
    assert loop.is_due(step, every, last) == due


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 20), (0.1, 20), (1.0, 5), (9.0, 1)])
def test_a_loop_takes_a_few_seconds_at_most(seconds, steps):
    assert loop.steps_within(seconds, 20) == steps


@pytest.mark.parametrize(
    ("step", "cadences", "stop"),
    [(0, [], 10), (0, [4], 4), (4, [4], 8), (95, [], 100), (95, [98], 98), (8, [9, 12], 9), (9, [9, 12], 12)],
)
def test_the_loop_returns_where_something_is_due(step, cadences, stop):
    assert loop.next_stop(step, 10, cadences, last=100) == stop
