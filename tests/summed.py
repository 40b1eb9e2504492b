"""A small study with a secure sum: real trainers in this process, and a coordinator that may die, lose sites or lie."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message

from client.app import SITE_KEY, frame_of
from client.trainer.peers import confirm_peers, trainer_key
from client.trainer.service import TrainerService
from server.rounds.loop import StudyOutcome, run_study
from server.rounds.signer import request_signer
from shared_model.errors import TrainerError
from shared_model.messages import Frame, SecureSumRequest, decode, encode, weights_sha256
from shared_model.protocol import Protocol
from shared_model.secagg import Server, Session
from shared_model.secagg.terms import UPDATE, terms_of
from shared_model.signing import SigningKey, VerifyKey
from simulations.engine.library import TrainerLibrary
from simulations.engine.local import LocalGrid
from tests.signed import KEY, NAME, enrol, seal

STEPS = ("keys", "share", "mask", "confirm", "unmask")
ROUNDS = [{"name": "all", "rounds": 2, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]


def make_summed(make: Callable[..., Any], name: str = "study", *, sites: int = 4, **changes: Any) -> Any:
    """A small study of `sites` sites whose people have compared each other's words; unequal weights."""
    weights = [{"name": f"site-{n:02d}", "patients": 30, "weight": float(n)} for n in range(1, sites + 1)]
    values = {"federation__secure_sum": "masked", "federation__quorum": 3, "federation__sites": weights,
              "federation__deadline_s": 600.0, "training__phases": ROUNDS,
              "evaluation__bootstrap": 0} | changes  # fmt: skip
    study = with_true_weights(make(name, sites=sites, held_out=24, **values))
    return confirm_all(enrol(study, private_only=False))


def with_true_weights(study: Any) -> Any:
    """The same with the hash of its initial weights in its protocol, as `run_study` checks it."""
    values = study.protocol.model_dump(mode="json")
    values["initial_weights"]["sha256"] = weights_sha256(study.arrays)
    protocol = Protocol.create(values)
    for path in study.files.values():
        (path.parent / "protocols" / "approved.json").write_text(protocol.to_json())
    return dataclasses.replace(study, protocol=protocol)


def confirm_all(study: Any) -> Any:
    """Every site knows every other one's key."""
    keys = {site: key.public for site, key in keys_of(study).items()}
    for site in keys:
        confirm_peers(study.files[site].parent, {other: key for other, key in keys.items() if other != site})
    return study


def keys_of(study: Any) -> dict[str, SigningKey]:
    """The trainers' keys, which no coordinator has."""
    return {site.name: trainer_key(study.config(site.name).state) for site in study.protocol.federation.sites}


class Killed(BaseException):
    """The coordinator dies; nothing catches it."""


@dataclasses.dataclass
class Wire:
    """Stands between coordinator and trainers: `before` and `after` each message may raise what goes wrong.

    told: every request that reached a trainer, and its reply.
    """

    library: TrainerLibrary
    before: Callable[[str, Frame], None] = lambda site, request: None
    after: Callable[[str, Frame], None] = lambda site, request: None
    told: list[tuple[str, Frame, Frame]] = dataclasses.field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        site, request = str(context.node_config[SITE_KEY]), frame_of(message.content)
        self.before(site, request)
        reply = self.library(message, context)
        self.told.append((site, request, frame_of(reply.content)))
        self.after(site, request)
        return reply


def lose(*lost: tuple[str, str], times: int = 99) -> Callable[[str, Frame], None]:
    """(site, step) that cannot be reached, so often each."""
    left = Counter(dict.fromkeys(lost, times))

    def fault(site: str, request: Frame) -> None:
        asked = request.message
        if isinstance(asked, SecureSumRequest) and left[site, asked.step] > 0:
            left[site, asked.step] -= 1
            raise TrainerError(f"{site} is gone")

    return fault


def run(study: Any, folder: Path, *, signed: bool = True, **faults: Any) -> tuple[StudyOutcome, Wire]:
    """Run or resume the study in `folder`."""
    with TrainerLibrary(list(study.files.values())) as library:
        wire = Wire(library, **faults)
        grid = LocalGrid(library, app=wire)
        try:
            outcome = run_study(
                grid=grid, protocol=study.protocol, run_dir=folder, initial=study.arrays, observer=lambda _: None,
                stop=threading.Event(), signer=request_signer(KEY, name=NAME) if signed else None,
                signing=KEY if signed else None,
            )  # fmt: skip
        finally:
            grid.close()
    return outcome, wire


def participation(folder: Path, round_number: int = 1) -> dict[tuple[int, str], tuple[str, str]]:
    """(attempt, site) -> outcome and reason."""
    query = "SELECT attempt, site, outcome, reason FROM participation WHERE round = ?"
    with sqlite3.connect(f"file:{folder / 'journal.sqlite'}?mode=ro", uri=True) as db:
        return {(a, site): (outcome, why) for a, site, outcome, why in db.execute(query, (round_number,))}


def marks(study: Any) -> set[str]:
    """Sites that helped to unmask anything."""
    return {name for name, path in study.files.items() if list((path.parent / "state").glob("secure/*/*.revealed"))}


class Hall:
    """Sites that trained round 1, and a coordinator that is played by hand."""

    def __init__(self, study: Any) -> None:
        self.study = study
        self.names = [site.name for site in study.protocol.federation.sites]
        self.services: dict[str, TrainerService] = {}
        self.keys: dict[str, VerifyKey] = {site: key.public for site, key in keys_of(study).items()}
        for name in self.names:
            self.open(name)

    def open(self, name: str) -> None:
        """Start a trainer (again)."""
        if name in self.services:
            self.services.pop(name).close()
        self.services[name] = TrainerService(self.study.config(name), compute=threading.Lock())

    def close(self) -> None:
        for service in self.services.values():
            service.close()

    def train(self, *, attempt: int = 1) -> None:
        for name in self.names:
            self.exchange(name, self.study.train(attempt=attempt), self.study.arrays)

    def exchange(self, name: str, message: Any, arrays: Any = None, *, key: SigningKey = KEY) -> Any:
        """The decoded reply to a request under the coordinator's signature."""
        return decode(self.raw(name, message, arrays, key=key))

    def raw(self, name: str, message: Any, arrays: Any = None, *, key: SigningKey = KEY) -> bytes:
        frame = Frame(message, arrays or {}, seal(message, name, key=key))
        return self.services[name].exchange(encode(frame), wanted=lambda: True)

    def terms(self, *, attempt: int = 1, sites: Any = None, **changes: Any) -> Session:
        names = self.names if sites is None else sites
        terms = terms_of(
            self.study.protocol, what=UPDATE, round_number=1, attempt=attempt, coordinator=KEY.public,
            keys={name: self.keys[name] for name in names}, length=sum(a.size for a in self.study.arrays.values()),
            bound=100.0,
        )  # fmt: skip
        return terms.model_copy(update=changes)

    def request(self, step: str, document: bytes, *, attempt: int = 1, asked: int = 1, **changes: Any) -> Any:
        protocol = self.study.protocol
        values = {"study": protocol.study, "protocol_sha256": protocol.sha256, "what": UPDATE, "round": 1,
                  "attempt": attempt, "asked": asked, "step": step} | changes  # fmt: skip
        return SecureSumRequest.carrying(document, **values)

    def play(self, server: Server, *, until: str = "end", attempt: int = 1) -> None:
        """All steps before `until` with an honest coordinator and all sites."""
        for step in STEPS:
            if step == until:
                return
            self.play_step(server, step, attempt=attempt)

    def play_step(self, server: Server, step: str, *, attempt: int = 1) -> None:
        """One step."""
        takes = {"keys": server.take_keys, "share": server.take_shares, "confirm": server.take_statement,
                 "unmask": server.take_unmasking}  # fmt: skip
        for name, document in self.documents(server, step).items():
            reply = self.exchange(name, self.request(step, document, attempt=attempt))
            body = reply.message.document.encode()
            if step == "mask":
                server.take_masked(body, np.ascontiguousarray(reply.arrays["masked_words"]).tobytes())
            else:
                takes[step](body)

    def documents(self, server: Server, step: str) -> dict[str, bytes]:
        """What an honest coordinator tells each site in a step."""
        if step == "mask":
            return server.deliveries()
        make = {"keys": server.opening, "share": server.directory, "confirm": server.survivors,
                "unmask": server.statements}  # fmt: skip
        return dict.fromkeys(server.session.sites, make[step]())
