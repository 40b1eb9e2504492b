"""A site that sends what it should not: nothing of it reaches the model, and the journal says why, in words.

Each lie replaces one reply of one site in round 2 between courier and coordinator. The end must be that of a study in
which the same site stayed away from that round, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from shared_model.messages import MAX_FRAME_BYTES, Frame, TrainReply, TrainRequest
from shared_model.tensors import WEIGHTS, pack
from simulations.engine.attached import Raw, clock_ahead, refusing, tampering
from simulations.faults.case import Case
from simulations.faults.ending import Ending
from simulations.faults.lab import SITES
from simulations.faults.scene import App, Scene, Unmet

LIAR, ROUND = SITES[1], 2
Lie = Callable[[Frame, "Frame | None"], "Frame | Raw"]  # the honest reply, that of the round before -> what is sent


def _times(factor: float) -> Lie:
    return lambda reply, _: Frame(
        reply.message, {name: np.asarray(array * np.float32(factor)) for name, array in reply.arrays.items()}
    )


def _with_nan(reply: Frame, _: Frame | None) -> Frame:
    arrays = {name: np.array(array) for name, array in reply.arrays.items()}
    next(iter(arrays.values())).flat[0] = np.nan
    return Frame(reply.message, arrays)


def _fields(**changes: object) -> Lie:
    return lambda reply, _: Frame(reply.message.model_copy(update=changes), reply.arrays)


def _again(_: Frame, before: Frame | None) -> Frame:
    assert before is not None
    return before


def _disguised(reply: Frame, before: Frame | None) -> Frame:
    """The update of the round before in this round's envelope, but for the weights that it began from."""
    assert before is not None
    return Frame(reply.message.model_copy(update={"weights_sha256": "0" * 64}), before.arrays)


def _missing(reply: Frame, _: Frame | None) -> Frame:
    return Frame(reply.message, dict(list(reply.arrays.items())[1:]))


def _broadcast(reply: Frame, _: Frame | None) -> Frame:
    first = next(iter(reply.arrays))
    return Frame(reply.message, {**reply.arrays, first: np.zeros((1,), np.float32)})


def _oversized(reply: Frame, _: Frame | None) -> Raw:
    return Raw(reply.message.model_dump_json(), {WEIGHTS: _packed(MAX_FRAME_BYTES // 4 + 1)})


def _unknown_field(reply: Frame, _: Frame | None) -> Raw:
    return Raw(json.dumps({**reply.message.model_dump(mode="json"), "import": "os"}), {WEIGHTS: _packed(1)})


def _no_schema(_: Frame, __: Frame | None) -> Raw:
    return Raw("[" * 5000, {})


def _lying_header(reply: Frame, _: Frame | None) -> Raw:
    return Raw(reply.message.model_dump_json(), {WEIGHTS: _packed(2).replace(b"[2]", b"[9]")})


def _packed(count: int) -> bytes:
    return pack({"w": np.zeros(count, np.float32)})


# name -> (what is sent instead, words that the journal must have, the outcome)
LIES: dict[str, tuple[Lie, str]] = {
    "nan": (_with_nan, "non_finite"),
    "times-1000": (_times(1000.0), "norm"),
    "stale-round": (_fields(round=1), "identity: the reply is for another round"),
    "replay": (_again, "identity: the reply is for another round"),
    "replay-disguised": (_disguised, "identity: the reply is for another weights"),
    "another-attempt": (_fields(attempt=3), "identity: the reply is for another attempt"),
    "another-site": (_fields(site=SITES[0]), "identity: the reply is for another site"),
    "another-study": (_fields(study="other"), "identity: the reply is for another study"),
    "missing-tensor": (_missing, "tensors"),
    "broadcastable": (_broadcast, "shape"),
    "oversized": (_oversized, "malformed: tensors are too large"),
    "unknown-field": (_unknown_field, "malformed: message of kind 'trained' breaks its schema"),
    "no-schema": (_no_schema, "malformed: message of an unknown kind"),
    "lying-header": (_lying_header, "malformed: tensors are damaged"),
}
ABSENT = "absent"  # the reference: the site says that it cannot


def malice_cases() -> list[Case]:
    """Every lie in a study whose quorum one honest site makes, and a clock that is ahead."""
    lies = [
        Case(name=f"malice/{LIAR}/{name}", play=partial(play, words=words), judge=like_absent, flavour="tolerant",
             app=partial(lying, lie=lie), reference=ABSENT)
        for name, (lie, words) in LIES.items()
    ]  # fmt: skip
    return [*lies, Case(name=f"clock/{LIAR}/ahead-of-the-deadline", play=clock, judge=one_site_only, flavour="tolerant",
                        app=lambda _: clock_ahead(LIAR, seconds=1e6))]  # fmt: skip


def lying(_: Path, *, lie: Lie) -> App:
    """A courier's app that replaces the liar's reply in one round."""
    seen: dict[int, Frame] = {}

    def tamper(site: str, request: Frame, reply: Frame) -> Frame | Raw | None:
        if site != LIAR or not isinstance(request.message, TrainRequest) or not isinstance(reply.message, TrainReply):
            return None
        seen[request.message.round] = reply
        return lie(reply, seen.get(ROUND - 1)) if request.message.round == ROUND else None

    return tampering(tamper)


def absent(_: Path) -> App:
    """A courier's app at whose site nothing comes of one round."""

    def tamper(site: str, request: Frame, _: Frame) -> Frame | None:
        asked = isinstance(request.message, TrainRequest) and request.message.round == ROUND
        return refusing("as the case wants it") if asked and site == LIAR else None

    return tampering(tamper)


def play(scene: Scene, *, words: str) -> str:
    """Run to the end; the journal must say of the liar what was wrong.

    Raises:
        Unmet: it does not.
    """
    scene.start()
    scene.complete()
    outcome, reason = _journalled(scene)
    if outcome != "refused" or not reason.startswith(words):
        raise Unmet("the lie was not refused", found=f"{outcome}: {reason}", expected=f"refused: {words}")
    return f"refused ({words})"


def clock(scene: Scene) -> str:
    """Run with one site whose clock is far ahead; it must be told to look at its clock, every round.

    Raises:
        Unmet: it was not.
    """
    scene.start()
    scene.complete()
    outcome, reason = _journalled(scene)
    text = _events(scene)
    if outcome != "failed" or "clock" not in text + reason:
        raise Unmet("the clock was not named", found=f"{outcome}: {reason}; {text}", expected="failed: the clocks")
    return "clock named"


def like_absent(found: Ending, expected: Ending) -> list[str]:
    """The model of a study without the liar's update, and that update refused."""
    faults = [] if found.model == expected.model else ["the model is not that of a study without the update"]
    if found.checkpoints != expected.checkpoints:
        faults.append("checkpoints are not those of a study without the update")
    wanted = {number: dict(row) for number, row in expected.participation.items()}
    wanted[ROUND][LIAR] = "refused"
    if found.participation != wanted:
        faults.append(f"participation {found.participation}, not {wanted}")
    return faults


def one_site_only(found: Ending, _: Ending) -> list[str]:
    """Every round closed without the site with the wrong clock."""
    outcomes = {row[LIAR] for row in found.participation.values()}
    return [] if found.status == "COMPLETE" and outcomes == {"failed"} else [f"{found.status}, {outcomes}"]


def _journalled(scene: Scene) -> tuple[str, str]:
    query = "SELECT outcome, reason FROM participation WHERE round = ? AND site = ?"
    ((outcome, reason),) = scene.journal(query, ROUND, LIAR)
    return str(outcome), str(reason)


def _events(scene: Scene) -> str:
    return "; ".join(text for (text,) in scene.journal("SELECT text FROM events WHERE kind = 'site_absent'"))
