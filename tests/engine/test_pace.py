"""The pace of a study's method and its consequences. Seconds are told, never measured."""

from blackbox.study.pace import (
    AT_ONCE_SECONDS,
    MEASURED_EVERY,
    SECONDS_PER_COORDINATE,
    SNAPSHOT_SECONDS,
    SNAPSHOT_STEPS,
    Pace,
)

QUICK, SLOW = AT_ONCE_SECONDS / 10, AT_ONCE_SECONDS * 10


def measured(seconds: float, n_steps: int = 1) -> Pace:
    pace = Pace(10)
    pace.told(seconds)
    pace.closed(n_steps)
    return pace


def test_before_the_first_measurement_a_step_takes_what_its_dimension_suggests_and_nothing_happens_at_once():
    pace = Pace(1000)
    assert pace.tell_seconds == 1000 * SECONDS_PER_COORDINATE
    assert pace.ask_seconds(8) == 0.0
    assert not pace.may_close(0.1)
    assert not pace.may_ask(1)


def test_steps_are_expected_to_take_what_the_last_ones_took():
    pace = measured(0.5)
    assert pace.tell_seconds == 0.5
    pace.told(0.1)
    assert pace.tell_seconds == 0.1


def test_a_quick_step_may_close_at_once_and_a_slow_one_may_not():
    assert measured(QUICK).may_close(1)
    assert not measured(SLOW).may_close(1)


def test_the_time_of_a_measurement_is_shared_by_the_steps_it_closed():
    pace = measured(SLOW, n_steps=100)  # a tenth of the limit each
    assert pace.may_close(9)
    assert not pace.may_close(11)


def test_a_computation_that_closed_no_step_says_nothing_of_steps():
    assert not measured(QUICK, n_steps=0).may_close(1)


def test_after_many_steps_closed_at_once_one_is_measured_again():
    pace = measured(QUICK)
    for _ in range(MEASURED_EVERY):
        assert pace.may_close(1)
        pace.closed_at_once()
    assert not pace.may_close(1)
    pace.told(QUICK)
    pace.closed(1)
    assert pace.may_close(1)


def test_points_are_computed_at_once_when_lanes_and_steps_were_measured_and_the_lanes_are_quick():
    pace = Pace(10)
    pace.asked(8 * QUICK, 8)
    assert pace.ask_seconds(3) == 3 * QUICK
    assert not pace.may_ask(1)  # no step was measured, so nobody knows how this study is driven
    pace.told(QUICK)
    pace.closed(1)
    assert pace.may_ask(9)
    assert not pace.may_ask(11)


def test_a_snapshot_is_due_after_many_steps():
    pace = Pace(10)
    assert not pace.snapshot_due(0, SNAPSHOT_STEPS - 1)
    assert pace.snapshot_due(SNAPSHOT_STEPS - 1, SNAPSHOT_STEPS)
    assert not pace.snapshot_due(SNAPSHOT_STEPS, SNAPSHOT_STEPS + 1)


def test_a_snapshot_is_due_after_much_computing_since_the_last():
    pace = Pace(10)
    for _ in range(3):
        pace.told(SNAPSHOT_SECONDS / 2)
    assert pace.snapshot_due(0, 1)
    pace.snapshot_stored()
    assert not pace.snapshot_due(1, 2)
