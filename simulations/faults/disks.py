"""A disk that refuses at every state: the party stands still, gets a file size limit of nothing, and goes on.

The limit is set from outside (prlimit(2), RLIMIT_FSIZE): each write that would make a file longer fails, as on a full
disk, and nothing in the party knows of the harness. Then there is room again, and the study goes on to the same end.
"""

from __future__ import annotations

import resource
from functools import partial

from shared_model.errors import QuorumError, RoundError, StorageError
from simulations.faults.case import Case, Judge
from simulations.faults.ending import judge_private, same_model
from simulations.faults.lab import SERVER, SITES
from simulations.faults.points import SERVER_PLACES, Point
from simulations.faults.scene import Scene, Unmet
from simulations.parties import EVALUATOR


def disk_cases() -> list[Case]:
    """The coordinator's disk at every state; a site's before and after its training; the evaluator's at `test`."""
    server = [_case("plain", Point(SERVER, place), SERVER) for place in SERVER_PLACES if place != "failed"]
    site = [_case("plain", Point(SERVER, "opened"), SITES[0]), _case("plain", Point(SITES[0], "storing"), SITES[0])]
    charged = [_case("private", Point(SERVER, "opened"), SITES[0]),
               _case("private", Point(SITES[0], "storing"), SITES[0], more=1)]  # fmt: skip
    return [*server, *site, _case("plain", Point(EVALUATOR, "testing"), EVALUATOR), *charged]


def _case(flavour: str, point: Point, victim: str, *, more: int = 0) -> Case:
    judge: Judge = same_model if flavour == "plain" else partial(judge_private, more={victim: more})
    group = "disk" if flavour == "plain" else "disk-private"
    return Case(name=f"{group}/{victim}/at-{point}", play=partial(fill_at, point=point, victim=victim), judge=judge,
                flavour=flavour)  # fmt: skip


def fill_at(scene: Scene, *, point: Point, victim: str) -> str:
    """Run until `point`, take the room from `victim`, go on until the study ends in words, give room, go on.

    Raises:
        Unmet: the study did not end, or ended in other words than those for a full disk.
    """
    scene.start(point)
    parked = scene.wait_at(point)
    limit(scene.processes[victim].pid, 0)
    parked.go()
    code, words = scene.finish(), scene.words
    codes = {StorageError.exit_code} if victim == SERVER else {QuorumError.exit_code, RoundError.exit_code}
    if code not in codes or not words:
        raise Unmet("a full disk was not told", found=f"exit code {code}: {words or 'no words'}", expected=codes)
    if victim != SERVER:
        limit(scene.processes[victim].pid, None)
    scene.coordinate()
    scene.complete()
    return f"code {code}, then room"


def limit(pid: int, most: int | None) -> None:
    """Bound the size of files that a process may write, bytes; None: no bound beyond the hard one."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if most is None else most, hard))
