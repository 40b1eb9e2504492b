"""SIGKILL of every party while the study stands at every state; then it is started again, and goes on."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

from shared_model.messages import Frame, TrainRequest
from simulations.engine.attached import Tamper, refusing, tampering
from simulations.faults.case import Case, Judge
from simulations.faults.ending import judge_private, same_model
from simulations.faults.lab import SERVER, SITES, TRAINERS
from simulations.faults.points import EVALUATOR_PLACES, SERVER_PLACES, SITE_PLACES, Point
from simulations.faults.scene import App, Scene
from simulations.parties import EVALUATOR

PARTIES = (SERVER, *TRAINERS)
ALL = "all"  # victims at once, as in a power cut
FAILED = "failed"
# Entries that a site's ledger may have too many after its own death there; elsewhere a repetition costs nothing.
OVER_COUNT = {"training": 1, "settled": 1, "storing": 1}


def kill_cases() -> list[Case]:
    """Every point x every victim without privacy, to the bit; under privacy the points that the ledger is about."""
    points = [*(Point(SERVER, place) for place in SERVER_PLACES),
              *(Point(SITES[0], place) for place in SITE_PLACES if place != "settled"),
              *(Point(EVALUATOR, place) for place in EVALUATOR_PLACES)]  # fmt: skip
    private = [*(Point(SITES[0], place) for place in SITE_PLACES), Point(SERVER, "opened"), Point(SERVER, "collected")]
    return [
        *(_case("plain", point, victim) for point, victim in itertools.product(points, (*PARTIES, ALL))),
        *(_case("private", point, victim) for point, victim in itertools.product(private, (SERVER, SITES[0], ALL))),
    ]


def _case(flavour: str, point: Point, victim: str) -> Case:
    judge: Judge = same_model if flavour == "plain" else partial(judge_private, more=_more(point, victim))
    group = "kill" if flavour == "plain" else "kill-private"
    return Case(
        name=f"{group}/{victim}/at-{point}", play=partial(kill_at, point=point, victim=victim), judge=judge,
        flavour=flavour, app=fails_once if point.place == FAILED else None,
    )  # fmt: skip


def _more(point: Point, victim: str) -> dict[str, int]:
    """Ledger entries that a death explains, by site: of the one that stands there, and, when all die while it trains,
    of the other, which may stand anywhere in the same round."""
    if victim not in (point.party, ALL):
        return {}
    here = {point.party: OVER_COUNT.get(point.place, 0)}
    return here | ({SITES[1]: 1} if victim == ALL and point.party == SITES[0] else {})


def kill_at(scene: Scene, *, point: Point, victim: str) -> str:
    """Run until `point`, kill `victim` (or `ALL`), start it again, and run to the end."""
    scene.start(point)
    parked = scene.wait_at(point)
    victims = PARTIES if victim == ALL else (victim,)
    for name in victims:
        scene.processes[name].kill()
    for name in victims:
        if name != SERVER:
            scene.start_trainer(name)
    if point.party not in victims:
        parked.go()
    if SERVER in victims:
        scene.coordinate()
    scene.complete()
    return f"{victim} killed"


def fails_once(folder: Path) -> App:
    """A second site that fails in round 2, once in a study, so that its first attempt misses the quorum."""
    mark = folder / "failed-once"

    def once(site: str, request: Frame, _: Frame) -> Frame | None:
        message = request.message
        if site != SITES[1] or not isinstance(message, TrainRequest) or message.round != 2 or mark.exists():
            return None
        mark.touch()
        return refusing("as the case wants it")

    tamper: Tamper = once
    return tampering(tamper)
