"""What the coordinator makes of Flower's answers; they were taken from Flower 1.41, whose SuperLink is not run here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.link import Link
from server.deploy.membership import Membership
from server.deploy.nodes import Node
from shared_model.errors import RoundError

UNKNOWN = "Using SuperLink: hub (127.0.0.1:35543)\n Displaying information ...\n\n[code: 16] Run ID not found."
NODES = {"success": True, "nodes": [{"node-id": "11", "status": "unregistered"}, {"node-id": "12", "status": "online"}]}


class Flwr:
    """In the place of the command `flwr`."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer, self.asked = answer, list[list[str]]()

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        self.asked.append(command[1:3])
        return subprocess.CompletedProcess(command, 0, json.dumps(self.answer).encode(), b"")


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
    return CoordinatorHome.create(tmp_path / "hub", settings)


def answering(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]) -> Flwr:
    flwr = Flwr(answer)
    monkeypatch.setattr("server.deploy.link.subprocess.run", flwr)
    return flwr


def test_a_run_that_superlink_has_forgotten_has_ended(home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its database was lost: the study goes on in a new run, and does not ask for the old one for ever."""
    answering(monkeypatch, {"success": False, "error-message": UNKNOWN})
    assert Link(home).run_status(1).ended


def test_a_superlink_that_refuses_has_ended_nothing(home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, {"success": False, "error-message": "[code: 1] busy"})
    with pytest.raises(RoundError, match="refuses"):
        Link(home).run_status(1)


def test_a_node_that_was_shut_out_is_not_shut_out_again(home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between SuperLink's answer and its own record, the daemon would else never let anybody in again."""
    flwr = answering(monkeypatch, NODES)
    link = Link(home)
    assert link.node_ids() == {12}
    home.nodes.write({11: Node(site="north", role="site", key="0" * 64)})
    with home.registry() as registry:
        Membership(home, link, registry, report=lambda site, words: None).step()
    assert ["supernode", "unregister"] not in flwr.asked
    assert home.nodes.read() == {}


def test_sites_are_told_no_place_of_the_coordinator_s(home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower hands a run's configuration to every node."""
    answering(monkeypatch, {"run-id": "7"})
    link = Link(home)
    link.prepare()
    assert link.submit(home.study("breast"), patience_s=1.0) == 7
    assert str(home.folder) not in (home.link / "run.toml").read_text()
