"""clock: now never goes back, and is worked towards Redis's time by at most 50 ms a second."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import SLEW, SystemClock

# A float that counts seconds since 1970 is exact to a quarter of a microsecond.
EXACT = 1e-6


@dataclass
class MachineTime:
    """The module `time`, as far as a clock reads it: turned by a test."""

    wall: float = 1_800_000_000.0
    running: float = 5_000.0

    def time(self) -> float:
        return self.wall

    def perf_counter(self) -> float:
        return self.running

    def turn(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> MachineTime:
    machine = MachineTime()
    monkeypatch.setattr("gateway.clock.time", machine)
    return machine


def test_now_begins_as_the_machines_time(machine: MachineTime) -> None:
    assert SystemClock().now() == machine.wall


def test_now_runs_with_the_machine(machine: MachineTime) -> None:
    clock = SystemClock()
    machine.turn(10.0)
    assert clock.now() == 1_800_000_010.0


@pytest.mark.parametrize("jump", [3600.0, -3600.0], ids=["forward", "back"])
def test_a_wall_clock_that_is_set_changes_nothing(machine: MachineTime, jump: float) -> None:
    clock = SystemClock()
    machine.wall += jump
    assert clock.now() == 1_800_000_000.0


def test_the_first_correction_is_taken_whole(machine: MachineTime) -> None:
    clock = SystemClock()
    clock.synchronise(machine.wall + 100.0)
    assert clock.now() == machine.wall + 100.0


def test_the_first_correction_does_not_turn_time_back(machine: MachineTime) -> None:
    clock = SystemClock()
    before = clock.now()
    clock.synchronise(machine.wall - 100.0)
    assert clock.now() >= before


@pytest.mark.parametrize("error", [1.0, -1.0], ids=["slow", "fast"])
def test_a_later_correction_is_worked_off_at_50_ms_a_second(machine: MachineTime, error: float) -> None:
    clock = SystemClock()
    clock.synchronise(machine.wall)
    clock.synchronise(machine.wall + error)
    assert clock.now() == machine.wall
    machine.turn(10.0)
    assert clock.now() == pytest.approx(machine.wall + error / 2, abs=EXACT)
    machine.turn(10.0)
    assert clock.now() == pytest.approx(machine.wall + error, abs=EXACT)
    machine.turn(1000.0)
    assert clock.now() == pytest.approx(machine.wall + error, abs=EXACT)


@pytest.mark.parametrize("error", [1.0, -1.0], ids=["slow", "fast"])
def test_a_correction_that_is_worked_off_costs_no_reading_anything_more(machine: MachineTime, error: float) -> None:
    clock = SystemClock()
    clock.synchronise(5_100.0)
    clock.synchronise(5_100.0 + error)
    machine.turn(21.0)
    assert clock.now() == clock.now() == 5_121.0 + error
    assert repr(clock) == f"<SystemClock offset={100.0 + error:.3f} drift=+0.000>"


def test_a_correction_amid_another_begins_where_that_one_stands(machine: MachineTime) -> None:
    clock = SystemClock()
    clock.synchronise(machine.wall)
    clock.synchronise(machine.wall + 1.0)
    machine.turn(10.0)
    clock.synchronise(machine.wall)
    assert clock.now() == pytest.approx(machine.wall + 0.5, abs=EXACT)
    machine.turn(10.0)
    assert clock.now() == pytest.approx(machine.wall, abs=EXACT)


def test_the_last_correction_is_kept_while_redis_is_away(machine: MachineTime) -> None:
    clock = SystemClock()
    clock.synchronise(machine.wall + 100.0)
    machine.turn(86_400.0)
    assert clock.now() == machine.wall + 100.0


def test_a_clock_shows_its_offset_and_what_is_left_to_work_off(machine: MachineTime) -> None:
    clock = SystemClock()
    clock.synchronise(5_100.0)
    clock.synchronise(5_099.5)
    assert repr(clock) == "<SystemClock offset=100.000 drift=-0.500>"


# How long after the last step, and how far Redis's time is from the machine's then (None: no correction).
STEPS = st.lists(st.tuples(st.floats(0, 1e5), st.none() | st.floats(-1e6, 1e6)), min_size=1, max_size=20)


@given(st.floats(-1e6, 1e6), STEPS)
def test_after_the_first_correction_now_never_goes_back_and_slews_by_at_most_5_percent(
    first: float, steps: list[tuple[float, float | None]]
) -> None:
    machine = MachineTime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.clock.time", machine)
        clock = SystemClock()
        clock.synchronise(machine.wall + first)
        last = clock.now()
        for seconds, error in steps:
            machine.turn(seconds)
            if error is not None:
                clock.synchronise(machine.wall + error)
            passed = clock.now() - last
            assert passed >= -EXACT
            assert abs(passed - seconds) <= SLEW * seconds + EXACT
            last = clock.now()
