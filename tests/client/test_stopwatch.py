"""The stopwatch of one request, by a clock that the test turns."""

from __future__ import annotations

from client.trainer.stopwatch import Stopwatch
from shared_model.phases import PhaseSeconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_second_belongs_to_one_phase() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    for phase, seconds in (("wait", 0.5), ("load", 1.0), ("train", 60.0), ("mask", 0.25), ("load", 2.0)):
        clock.now += seconds
        watch.lap(phase)  # type: ignore[arg-type]
    assert watch.told(coarse=False) == PhaseSeconds(wait=0.5, load=3.0, train=60.0, mask=0.25)
    assert watch.told(coarse=False).total == clock.now - 100.0


def test_reading_films_is_taken_out_of_the_training_and_never_more_than_it_took() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 10.0
    watch.lap("train")
    watch.move(4.0, "train", "load")
    assert watch.told(coarse=False) == PhaseSeconds(load=4.0, train=6.0)
    watch.move(99.0, "train", "load")
    assert watch.told(coarse=False) == PhaseSeconds(load=10.0)


def test_it_tells_in_steps_where_women_are_protected() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 61.2345
    watch.lap("train")
    assert watch.told(coarse=False).train == 61.234
    assert watch.told(coarse=True).train == 63.0
