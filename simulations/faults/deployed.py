"""SIGKILL in a real deployment: SuperLink, SuperNodes, tunnels, daemon and trainers are processes with a supervisor.

The study is that of all other cases, run by the engine `deployment`; without privacy its end must equal, to the bit,
that of the undisturbed one on the engine `local`. A case takes one to three minutes: SuperLink, trainers and couriers
start in some seconds each, and Flower keeps a killed node out for about a minute.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from server.deploy.studies import StudyFolder
from server.rounds.follow import read_events
from simulations.engine.deployment import Rehearsal
from simulations.engine.deployment.rehearsal import HUB
from simulations.engine.deployment.run import parties
from simulations.faults.case import Case
from simulations.faults.ending import same_model
from simulations.faults.lab import SITES, TRAINERS, Install
from simulations.faults.scene import Scene
from simulations.parties import EVALUATOR

GROUP: Final = "deployed"
START_S: Final = 240.0
END_S: Final = 900.0

# What is killed -> whose process, and words of its command line.
VICTIMS: Final[Mapping[str, tuple[str, str]]] = {
    "superlink": (HUB, "flower-superlink"), "superexec": (HUB, "flower-superexec"),
    "serverapp": (HUB, "flwr-serverapp"), "daemon": (HUB, "server serve"),
    "supernode": (SITES[0], "flower-supernode"), "trainer": (SITES[1], "client.trainer.server"),
    "courier": (SITES[0], "site join"), "evaluator": (EVALUATOR, "client.trainer.server"),
}  # fmt: skip

FIVE: Final = (("trainer", "evaluator"), ("supernode",), ("superlink", "serverapp"))
"""Killed while round 1, 2 and 3 is running: five kills in one study, for the test suite."""


def deployed_cases() -> list[Case]:
    """One kill each, in the second round; and five in one study."""
    every = [Case(name=f"{GROUP}/{name}", play=partial(kill, plan=((), (name,))), judge=same_model)
             for name in VICTIMS]  # fmt: skip
    return [*every, Case(name=f"{GROUP}/five", play=partial(kill, plan=FIVE), judge=same_model)]


def kill(scene: Scene, *, plan: Sequence[Sequence[str]]) -> str:
    """Run the study of a scene as a deployment; while round n is running, kill what the n-th part of the plan names."""
    copy, folder = scene.copy, scene.folder / "deployment"
    everybody = parties([copy.files[name] for name in TRAINERS], copy.protocol)
    with Rehearsal(folder, everybody, timeout_s=START_S) as there:
        study = there.propose(copy.run_dir)
        there.approve(study.name)
        there.server("start", study.name)
        for number, victims in enumerate(plan, start=1):
            if victims:
                there.until(lambda number=number: _running(study, number), f"round {number} was not begun",  # type: ignore[misc]
                            timeout_s=END_S)  # fmt: skip
                for victim in victims:
                    _kill(there, victim)
        there.wait(study, timeout_s=END_S)
        files = {name: home.trainer / "trainer.json" for name, home in there.sites.items()}
    scene.copy = Install(copy.protocol, copy.run_dir, files)
    return f"{', '.join(victim for victims in plan for victim in victims)} killed"


def _running(study: StudyFolder, number: int) -> bool:
    """Whether sites have been asked for a round, and it is not closed."""
    events = read_events(study.journal, after=0)
    asked = any(event.kind == "site_started" and event.round == number for _, event in events)
    return asked and study.closed() == number - 1


def _kill(there: Rehearsal, victim: str) -> None:
    party, words = VICTIMS[victim]
    there.until(lambda: bool(there.pids(party, words)), f"{victim} does not run")
    for pid in there.pids(party, words):
        os.kill(pid, signal.SIGKILL)


