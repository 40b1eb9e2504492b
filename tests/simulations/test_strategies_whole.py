"""Whole studies with real trainers, killed after each round and resumed by new processes' objects: the same bits."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.rounds.events import Event
from server.rounds.loop import run_study
from shared_model.messages import weights_sha256
from simulations.engine.library import TrainerLibrary
from simulations.engine.local import LocalGrid

CASES: dict[str, dict[str, Any]] = {
    "scaffold": {"federation__strategy": "scaffold", "training__momentum": 0.0},
    "fedbn_like": {"federation__personal": "fedbn_like", "federation__strategy": "fedavgm"},
}
PHASES = [{"name": "all", "rounds": 2, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 0.5}]


class Killed(BaseException):
    """Nothing catches it."""


def run(study: Any, observer: Callable[[Event], None] = lambda _: None) -> None:
    with TrainerLibrary(list(study.files.values())) as library:
        grid = LocalGrid(library, app=library)
        try:
            outcome = run_study(grid=grid, protocol=study.protocol, run_dir=study.root / "run", initial=study.arrays,
                                observer=observer, stop=threading.Event())  # fmt: skip
        finally:
            grid.close()
    assert outcome.status == "COMPLETE", outcome.reason


def artefacts(study: Any) -> dict[str, bytes]:
    kept = [*(study.root / "run").rglob("*.safetensors"), *(study.root / "sites").rglob("*.safetensors")]
    return {str(path.relative_to(study.root)): path.read_bytes() for path in kept}


def site_reports(study: Any) -> list[tuple[str, str]]:
    """How each site's own women fared with its own copy."""
    query = "SELECT site, document FROM reports WHERE scope = 'site' ORDER BY site"
    with sqlite3.connect(study.root / "run" / "journal.sqlite") as db:
        rows = db.execute(query).fetchall()
    assert [row[0] for row in rows] == ["site-01", "site-02"]
    return rows


@pytest.mark.parametrize("case", CASES)
def test_killed_after_every_round_and_resumed_the_study_is_the_same_to_the_bit(
    tmp_path: Path, study_maker: Callable[..., Any], case: str
) -> None:
    changes = {**CASES[case], "training__phases": PHASES, "evaluation__bootstrap": 0,
               "initial_weights__sha256": initial(study_maker, tmp_path)}  # fmt: skip
    undisturbed, killed = (study_maker(tmp_path / name, patients=20, held_out=30, suppress_below=0, **changes)
                           for name in "ab")  # fmt: skip
    run(undisturbed)

    def die(event: Event) -> None:
        if event.kind == "round_closed":
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            run(killed, die)
    run(killed)
    assert artefacts(killed) == artefacts(undisturbed)
    names = " ".join(artefacts(undisturbed))
    assert ("personal" in names) == (case != "scaffold")
    assert site_reports(killed) == site_reports(undisturbed)


def initial(study_maker: Callable[..., Any], tmp_path: Path) -> str:
    """Hash of the initial weights that `study_maker` makes (they depend on the seed alone)."""
    return weights_sha256(study_maker(tmp_path / "probe", sites=1, patients=5, held_out=5).arrays)
