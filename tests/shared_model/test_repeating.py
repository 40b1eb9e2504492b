"""The thread that does the same again and again: it turns while the block runs, and its end is as was said."""

from __future__ import annotations

import threading

from shared_model.repeating import Repeating


class Counting(Repeating):
    """Counts turns; `third` is set at the third."""

    def __init__(self) -> None:
        super().__init__("counting", every_s=0.001)
        self.turns, self.third = 0, threading.Event()

    def _turn(self) -> None:
        self.turns += 1
        if self.turns == 3:
            self.third.set()


class Stuck(Repeating):
    """Its turn lasts until `go` is set."""

    def __init__(self) -> None:
        super().__init__("stuck", every_s=0.001, end_s=0.0)
        self.begun, self.go = threading.Event(), threading.Event()

    def _turn(self) -> None:
        self.begun.set()
        self.go.wait(60)


def alive(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


def test_it_turns_until_the_end_and_its_thread_is_gone_then() -> None:
    with Counting() as counting:
        assert counting.third.wait(60) and alive("counting")
    assert counting.turns >= 3 and not alive("counting")


def test_a_block_that_waits_for_nobody_ends_during_a_turn() -> None:
    with Stuck() as stuck:
        assert stuck.begun.wait(60)
    assert alive("stuck")
    stuck.go.set()
    stuck._thread.join(60)
    assert not alive("stuck")
