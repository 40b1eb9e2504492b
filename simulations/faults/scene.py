"""One study with its four processes, which a case starts, parks, kills and starts again; the supervisor's part.

The coordinator runs the round loop of every engine; trainers run the service of every site; between them are Flower's
messages, the courier's shim and Unix sockets. Only who starts whom differs from `mammofed simulate`: here nobody starts
a dead party again but the case.
"""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch

from client.trainer.server import serve
from server.rounds.checkpoint import read_arrays
from server.rounds.loop import run_study
from server.rounds.states import RoundState, StudyState
from shared_model.errors import QuorumError, RoundError
from simulations.engine import LocalGrid
from simulations.engine.attached import AttachedTrainers, courier
from simulations.faults.ending import Ending, rows
from simulations.faults.lab import SERVER, TRAINERS, Install, Lab
from simulations.faults.points import NEW, SAVING, SERVER_PLACES, Point, install
from simulations.faults.process import Port, Process

App = Callable[[Any, Any], Any]
EXITS = {"COMPLETE": 0, "INCOMPLETE": QuorumError.exit_code}


class Unmet(RoundError):
    """A case did not go as it must; the words say what happened instead."""


class Scene:
    """A context manager around one copy of the study.

    Args:
        folder: of the copy; must not exist.
        app: stands between coordinator and trainers instead of the courier's own app, in every coordinator process.
    """

    def __init__(self, lab: Lab, flavour: str, folder: Path, *, app: App = courier) -> None:
        self.copy: Install = lab.install(flavour, folder)
        self.folder, self._app, self.words = folder, app, ""
        self._sockets_folder = Path(tempfile.mkdtemp(prefix="mf-"))  # short enough for a socket's name
        self.sockets = {name: self._sockets_folder / f"{index}.sock" for index, name in enumerate(TRAINERS)}
        self.trainer_sockets = dict(self.sockets)  # where trainers listen; a case may put a proxy between the two
        self.processes: dict[str, Process] = {}
        self.endings: list[tuple[str, Ending]] = []  # ends on the way, with a word each; judged like the last one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
        shutil.rmtree(self._sockets_folder, ignore_errors=True)

    def start(self, *points: Point) -> None:
        """All parties, the coordinator last; each parks at its point, if it has one here."""
        places = {point.party: point for point in points}
        for name in TRAINERS:
            self.start_trainer(name, places.get(name))
        self.coordinate(places.get(SERVER))

    def start_trainer(self, name: str, point: Point | None = None) -> None:
        """Start a trainer, and wait until it answers.

        Raises:
            Unmet: it ended.
        """

        def body(port: Port) -> int:
            if point is not None:
                install(point, port)
            logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
            torch.set_num_threads(1)
            stop = threading.Event()
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            serve([self.copy.files[name]], self.trainer_sockets[name], stop=stop, ready=lambda: port.tell("ready"))
            return 0

        process = self.processes[name] = Process(name, body, log=self.folder / f"{name}.log")
        note = process.note("ready", "failed")
        if note is None or note["kind"] == "failed":
            raise Unmet(f"the trainer of {name} did not start", found=(note or {}).get("words", "it ended"))

    def coordinate(self, point: Point | None = None) -> None:
        """Start a coordinator on the run directory: a new study, or a resumed one."""

        def body(port: Port) -> int:
            if point is not None:
                install(point, port)
            outcome = run_study(
                grid=LocalGrid(AttachedTrainers(self.sockets), app=self._app), protocol=self.copy.protocol,
                run_dir=self.copy.run_dir, initial=read_arrays(self.copy.run_dir / "initial.safetensors"),
                observer=lambda _: None, stop=threading.Event(),
            )  # fmt: skip
            port.tell("ended", words=outcome.reason)
            return EXITS[outcome.status]

        self.processes[SERVER] = Process(SERVER, body, log=self.folder / "server.log")

    def wait_at(self, point: Point) -> Process:
        """Until the party stands at its point, and its durable record, read from outside, says so.

        Raises:
            Unmet: it never got there, or the record says something else.
        """
        process = self.processes[point.party]
        if process.parked() is None:
            raise Unmet(f"{point.party} ended before it came to {point}")
        if point.party == SERVER and (found := self._journalled(point)) != _expected(point.place):
            raise Unmet(f"the journal does not stand at {point}", found=found, expected=_expected(point.place))
        return process

    def finish(self) -> int:
        """Wait for the coordinator's end; its exit code. :attr:`words` then says why, when it is not 0."""
        process = self.processes[SERVER]
        note = process.note("ended", "failed")
        self.words = "" if note is None else str(note["words"])
        return process.wait()

    def complete(self) -> None:
        """Wait for the coordinator to complete the study.

        Raises:
            Unmet: it ended otherwise.
        """
        code = self.finish()
        if code:
            raise Unmet("the study did not complete", found=f"exit code {code}: {self.words}")

    def journal(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a SELECT on the journal, read as any monitor reads it."""
        return rows(self.copy.run_dir, query, *values)

    def attempts(self, round_number: int) -> int:
        """How many attempts of a round are in the journal."""
        return int(self.journal("SELECT count(*) FROM rounds WHERE round = ?", round_number)[0][0])

    def _journalled(self, point: Point) -> str:
        if point.place in (StudyState.CHOSEN.value, StudyState.TESTED.value):
            return str(self.journal("SELECT value FROM meta WHERE key = 'state'")[0][0]).strip('"')
        query = "SELECT state FROM rounds WHERE round = ? ORDER BY attempt DESC LIMIT 1"
        found = self.journal(query, point.round)
        return str(found[0][0]) if found else NEW


def _expected(place: str) -> str:
    assert place in SERVER_PLACES
    return RoundState.EVALUATED.value if place == SAVING else place
