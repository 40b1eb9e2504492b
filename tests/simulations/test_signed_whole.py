"""A whole study with real trainers under a coordinator's signature: the same bits as without, also when killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.rounds.events import Event
from server.rounds.loop import run_study
from server.rounds.signer import request_signer
from shared_model.audit import verify
from shared_model.messages import weights_sha256
from simulations.engine.library import TrainerLibrary
from simulations.engine.local import LocalGrid
from tests.signed import KEY, NAME, enrol

PHASES = [{"name": "all", "rounds": 2, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 0.5}]


class Killed(BaseException):
    """Nothing catches it."""


def run(study: Any, *, signed: bool, observer: Callable[[Event], None] = lambda _: None) -> None:
    with TrainerLibrary(list(study.files.values())) as library:
        grid = LocalGrid(library, app=library)
        try:
            outcome = run_study(
                grid=grid, protocol=study.protocol, run_dir=study.root / "run", initial=study.arrays, observer=observer,
                stop=threading.Event(), signer=request_signer(KEY, name=NAME) if signed else None,
            )  # fmt: skip
        finally:
            grid.close()
    assert outcome.status == "COMPLETE", outcome.reason


def audited(study: Any, party: str) -> list[dict[str, Any]]:
    path = study.config(party).state / "audit.jsonl"
    verify(path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_signed_study_gives_the_same_model_and_each_site_can_show_what_it_did(
    tmp_path: Path, study_maker: Callable[..., Any]
) -> None:
    first = weights_sha256(study_maker(tmp_path / "first", patients=20, held_out=30).arrays)
    changes = {"training__phases": PHASES, "evaluation__bootstrap": 0, "initial_weights__sha256": first}
    plain, signed, killed = (study_maker(tmp_path / name, patients=20, held_out=30, **changes) for name in "abc")
    run(plain, signed=False)
    run(enrol(signed, private_only=False), signed=True)
    enrol(killed, private_only=False)

    def die(event: Event) -> None:
        if event.kind in ("site_replied", "round_closed"):
            raise Killed

    for _ in range(4):
        with pytest.raises(Killed):
            run(killed, signed=True, observer=die)
    run(killed, signed=True)
    models = [(study.root / "run" / "model.safetensors").read_bytes() for study in (plain, signed, killed)]
    assert models[0] == models[1] == models[2]
    for study in (signed, killed):
        for site in ("site-01", "site-02"):
            rounds = [(e["fields"]["round"], e["fields"]["attempt"]) for e in audited(study, site)
                      if e["kind"] == "round_trained"]  # fmt: skip
            assert rounds == [(1, 1), (2, 1)]
        judged = audited(study, "evaluator")
        assert [e["fields"].get("scope") for e in judged if e["kind"] == "model_evaluated"].count("test") == 2
        assert "message_refused" not in {e["kind"] for e in judged}
