"""A SuperNode that hangs says nothing to the tunnel and is started again; one that speaks is left alone."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.deploy import join
from client.deploy.join import SILENT_S, SUPERNODE, CourierSide
from tests.enrolled import HANG_S


class FakeSupervisor:
    """Knows how old its one child is; a restart lasts until it is let go."""

    def __init__(self) -> None:
        self.age, self.started, self.again = 0.0, 0, 0
        self.may_end, self.began = threading.Event(), threading.Event()

    def add(self, service: Any) -> None:
        """Start it."""
        self.started += 1

    def states(self) -> dict[str, SimpleNamespace]:
        """How it is; while it is being ended nobody may ask, since the real one would not answer."""
        assert not self.began.is_set() or self.may_end.is_set()
        return {SUPERNODE: SimpleNamespace(seconds=self.age)}

    def restart(self, name: str) -> None:
        """Takes its time."""
        assert name == SUPERNODE
        self.again += 1
        self.began.set()
        assert self.may_end.wait(HANG_S)
        self.age = 0.0


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> tuple[CourierSide, FakeSupervisor, SimpleNamespace]:
    """A courier's side whose SuperNode has not been started yet."""
    monkeypatch.setattr(join, "supernode", lambda home, *, tunnel_port: SimpleNamespace(name=SUPERNODE))
    there, now = FakeSupervisor(), SimpleNamespace(certificate=None, silence=0.0)
    home: Any = SimpleNamespace(identity=lambda: SimpleNamespace(certificate=lambda: now.certificate), folder=Path())
    supervisor: Any = there
    return CourierSide(home, supervisor, tunnel_port=1, silence_s=lambda: now.silence), there, now


def test_supernode_waits_for_the_certificate_and_is_started_once(
    side: tuple[CourierSide, FakeSupervisor, SimpleNamespace],
) -> None:
    courier, there, now = side
    now.silence = 10 * SILENT_S
    courier.step()
    assert there.started == 0
    now.certificate = object()
    for _ in range(3):
        courier.step()
    assert (there.started, there.again) == (1, 0)  # it is young: silence from before it counts for nothing


def test_who_says_nothing_for_long_is_started_again_and_meanwhile_nobody_waits(
    side: tuple[CourierSide, FakeSupervisor, SimpleNamespace],
) -> None:
    courier, there, now = side
    now.certificate = object()
    courier.step()
    there.age, now.silence = 10 * SILENT_S, SILENT_S - 1
    courier.step()
    assert there.again == 0
    now.silence = SILENT_S + 1
    courier.step()
    assert there.began.wait(HANG_S)
    courier.step()  # while the old one is ended
    there.may_end.set()
    assert courier._again is not None
    courier._again.join(HANG_S)
    courier.step()  # a new one
    assert (there.started, there.again) == (1, 1)
