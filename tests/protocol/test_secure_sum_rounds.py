"""Studies whose updates reach the coordinator as a masked sum only: the same model, whoever falls out or dies."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.special import expit

from client.privacy.ledger import Ledger
from server.rounds.checkpoint import read_checkpoint
from server.rounds.loop import run_study
from shared_model.errors import ConfigError
from shared_model.evaluation.auc import paired_delong
from shared_model.evaluation.joint import joint_histogram
from shared_model.evaluation.joint_report import joint_document
from shared_model.messages import Frame, SecureSumRequest, TrainReply, decode
from shared_model.phases import told
from shared_model.secagg import Server
from simulations.engine.library import TrainerLibrary
from tests.signed import KEY
from tests.summed import (
    STEPS,
    Hall,
    Killed,
    lose,
    make_summed,
    marks,
    participation,
    run,
    with_true_weights,
)

Make = Callable[..., Any]
NAMES = [f"site-{n:02d}" for n in range(1, 5)]


def weights(study: Any, folder: Path, number: int) -> Any:
    return read_checkpoint(folder, number, protocol_sha256=study.protocol.sha256).weights


def trained(study: Any, site: str) -> int:
    """How often a site's ledger was charged for training."""
    records = Ledger(study.config(site).state / "ledger.json").records()
    return sum(record["group"] == "train" for record in records)


def test_a_repeated_step_says_the_same_seconds_also_after_a_restart(small_study: Make) -> None:
    hall = Hall(make_summed(small_study))
    try:
        hall.train()
        server = Server(hall.terms(), KEY)
        hall.play(server, until="mask")
        name, document = next(iter(hall.documents(server, "mask").items()))
        request = hall.request("mask", document)
        first = hall.raw(name, request)
        assert decode(first).message.seconds > 0  # type: ignore[union-attr]
        hall.open(name)
        assert hall.raw(name, request) == hall.raw(name, request) == first
    finally:
        hall.close()


def phases(folder: Path, number: int) -> dict[str, dict[str, float]]:
    with sqlite3.connect(folder / "journal.sqlite") as db:
        db.row_factory = sqlite3.Row
        rows = [dict(row) for row in db.execute("SELECT * FROM phases WHERE round = ?", (number,))]
    return {row.pop("site"): {k: v for k, v in row.items() if k not in ("round", "attempt")} for row in rows}


def stated_error(folder: Path, number: int) -> float:
    with sqlite3.connect(folder / "journal.sqlite") as db:
        query = "SELECT data FROM events WHERE kind = 'updates_summed' AND round = ?"
        return float(json.loads(db.execute(query, (number,)).fetchone()[0])["error"])


def test_the_model_is_the_plain_study_s_within_the_stated_error(small_study: Make, tmp_path: Path) -> None:
    summed = make_summed(small_study, "summed")
    plain = with_true_weights(small_study("plain", sites=4, **{
        "federation__sites": summed.protocol.model_dump()["federation"]["sites"], "federation__quorum": 3,
        "federation__deadline_s": 600.0, "training__phases": summed.protocol.model_dump()["training"]["phases"],
    }))  # fmt: skip
    assert run(summed, tmp_path / "a")[0].status == run(plain, tmp_path / "b", signed=False)[0].status == "COMPLETE"
    one, other = weights(summed, tmp_path / "a", 1), weights(plain, tmp_path / "b", 1)
    for name in other:  # beside the sum's own error, the plain average is one of float32 numbers, and so is the result
        allowed = stated_error(tmp_path / "a", 1) + 4 * np.spacing(np.abs(other[name]).max())
        assert float(np.abs(one[name] - other[name]).max()) <= allowed, name
    assert any(not np.array_equal(one[name], summed.arrays[name]) for name in one)


def test_no_update_crosses_by_itself(small_study: Make, tmp_path: Path) -> None:
    study = make_summed(small_study, private=True)
    outcome, wire = run(study, tmp_path / "run")
    assert outcome.status == "COMPLETE"
    for found in (phases(tmp_path / "run", 1), phases(tmp_path / "run", 2)):
        assert set(found) == set(NAMES)
        for row in found.values():  # masking was measured step by step, and all of it fits into the trips
            trip = row.pop("round_trip")
            assert row["mask"] > 0 and sum(row.values()) <= trip + 1e-6
            assert all(value == told(value, coarse=True) for value in row.values())
    rows = {**participation(tmp_path / "run", 1), **participation(tmp_path / "run", 2)}
    assert set(rows.values()) == {("contributed", "")}, rows
    replies = [reply for _, request, reply in wire.told if request.message.kind == "train"]
    assert len(replies) == 8 and all(isinstance(reply.message, TrainReply) for reply in replies)
    assert all(not reply.arrays and reply.message.loss is None for reply in replies)  # type: ignore[union-attr]
    masked = [reply.arrays for _, request, reply in wire.told if getattr(request.message, "step", "") == "mask"]
    assert len(masked) == 8 and all(set(arrays) == {"masked_words"} for arrays in masked)
    assert [trained(study, site) for site in NAMES] == [2, 2, 2, 2]
    kept = [path.name for path in (study.config("site-01").state / "secure").rglob("*.f32")]
    assert kept == []  # what was summed is forgotten


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_one_of_four_sites_may_fall_out_at_any_step(small_study: Make, tmp_path: Path, step: str, when: str) -> None:
    study = make_summed(small_study, training__phases=one_round())
    outcome, _ = run(study, tmp_path / "run", **{when: lose(("site-02", step))})
    assert outcome.status == "COMPLETE"
    rows = participation(tmp_path / "run")
    in_it = {site for (_, site), (outcome, _) in rows.items() if outcome == "contributed"}
    # Whoever falls out once its masked values are there is in the sum all the same.
    assert in_it == set(NAMES) - ({"site-02"} if step in ("keys", "share", "mask") else set())
    if "site-02" not in in_it:
        assert rows[1, "site-02"][0] in ("failed", "refused") and f"secure sum: {step}" in rows[1, "site-02"][1]
    assert max(attempt for attempt, _ in rows) == 1


@pytest.mark.parametrize("step", STEPS)
def test_below_the_threshold_the_attempt_fails_and_the_next_one_sums(
    small_study: Make, tmp_path: Path, step: str
) -> None:
    """Two of four fall out, in all tries of one attempt. The next one costs no training: values that no sum can have
    revealed are summed anew, and a sum that some site has helped to unmask is gone on with."""
    study = make_summed(small_study, private=True, training__phases=one_round(), federation__attempts=2)
    opened: list[set[str]] = []
    before: list[str] = []

    def note(site: str, request: Frame) -> None:
        if request.message.kind == "train" and before and not opened and before.count("train") >= 4:
            opened.append(marks(study))
        before.append(request.message.kind)
        gone(site, request)

    gone = lose(("site-02", step), ("site-03", step), times=2)
    outcome, _ = run(study, tmp_path / "run", before=note)
    assert outcome.status == "COMPLETE", outcome.reason
    rows = participation(tmp_path / "run")
    assert {outcome for (attempt, _), (outcome, _) in rows.items() if attempt == 2} == {"contributed"}
    assert "contributed" not in {outcome for (attempt, _), (outcome, _) in rows.items() if attempt == 1}
    assert opened == [{"site-01", "site-04"} if step == "unmask" else set()]
    assert [trained(study, site) for site in NAMES] == [1, 1, 1, 1]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_coordinator_that_died_goes_on_with_the_very_sum(
    small_study: Make, tmp_path: Path, step: str, when: str
) -> None:
    study = make_summed(small_study)
    undisturbed = make_summed(small_study, "undisturbed")
    run(undisturbed, tmp_path / "whole")
    died: list[str] = []

    def die(site: str, request: Frame) -> None:
        asked = request.message
        if not died and isinstance(asked, SecureSumRequest) and (asked.step, asked.round, site) == (step, 1, "site-03"):
            died.append(site)
            raise Killed

    with pytest.raises(Killed):
        run(study, tmp_path / "run", **{when: die})
    outcome, wire = run(study, tmp_path / "run")
    assert outcome.status == "COMPLETE" and died
    assert {reply.message.kind for _, _, reply in wire.told} <= {"described", "trained", "secure_summed", "evaluated"}
    for number in (1, 2):
        one, other = weights(study, tmp_path / "run", number), weights(undisturbed, tmp_path / "whole", number)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert max(attempt for attempt, _ in participation(tmp_path / "run")) == 1
    assert {outcome for outcome, _ in participation(tmp_path / "run").values()} == {"contributed"}


def test_a_sum_that_is_there_needs_no_site(small_study: Make, tmp_path: Path) -> None:
    """The coordinator dies with the whole sum on its disk, and two sites never come back."""
    study = make_summed(small_study, training__phases=one_round())

    class Dies:
        def __call__(self, event: Any) -> None:
            if event.kind == "updates_summed":
                raise Killed

    with pytest.raises(Killed):
        run_observed(study, tmp_path / "run", Dies())

    def gone(site: str, request: Frame) -> None:
        if site in ("site-01", "site-02") and request.message.kind in ("train", "secure_sum"):
            raise lose_error(site)

    outcome, _ = run(study, tmp_path / "run", before=gone)
    assert outcome.status == "COMPLETE"
    assert {outcome for outcome, _ in participation(tmp_path / "run").values()} == {"contributed"}


def test_a_sum_beyond_the_sites_bounds_together_enters_no_model(
    small_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that lies, in every number by less than its bound: the norm of the sum tells, but not who it was."""
    study = make_summed(small_study, private=True, training__phases=one_round(), federation__attempts=2)

    def lie(update: Any, received: Any) -> Any:
        return np.full(sum(array.size for array in received.values()), 0.5, dtype=np.float32)

    monkeypatch.setattr("client.trainer.train.vector_of", lie)
    outcome, _ = run(study, tmp_path / "run")
    assert outcome.status == "INCOMPLETE" and outcome.rounds_completed == 0
    rows = participation(tmp_path / "run")
    assert {outcome for outcome, _ in rows.values()} == {"refused"}
    assert all("norm of the sum" in why or "has norm" in why for _, why in rows.values())
    assert [trained(study, site) for site in NAMES] == [2, 2, 2, 2]  # each attempt's noise is paid for
    assert not list((tmp_path / "run" / "checkpoints").glob("round-0001*"))


def test_joint_metrics_are_the_exact_counts_of_all_sites_together(small_study: Make, tmp_path: Path) -> None:
    """The document is that of the women's own scores, binned and pooled, though no site's counts were seen; DeLong's
    paired test of the binned scores is met exactly, that of the scores themselves as far as bins can tell women apart:
    how far that is depends on the noise, which is another one in each run."""
    study = make_summed(small_study, private=True, training__phases=one_round(), privacy__metrics="joint",
                        privacy__metrics_bins=64, patients=80)  # fmt: skip
    outcome, wire = run(study, tmp_path / "run")
    assert outcome.status == "COMPLETE"
    told = [reply.message for _, request, reply in wire.told if getattr(request.message, "scope", "") == "site"]
    assert [message.report for message in told] == ["{}"] * 8  # type: ignore[union-attr]
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert metrics["sites"] == {}
    with TrainerLibrary(list(study.files.values())) as library:
        arrays = load_file(tmp_path / "run" / "model.safetensors")
        chosen = [library.scores(site, study.protocol, arrays, "test") for site in NAMES]
        initial = [library.scores(site, study.protocol, study.arrays, "test") for site in NAMES]
    y = np.concatenate([s.labels for s in chosen])
    fused = np.concatenate([s.fused for s in chosen]) / temperature(tmp_path / "run", "selection")
    public = np.concatenate([s.image for s in initial]) / temperature(tmp_path / "run", "initial")
    image = np.concatenate([s.image for s in chosen])
    tables = {"public": joint_histogram(y, fused, public, bins=64), "image": joint_histogram(y, fused, image, bins=64)}
    expected = joint_document(tables, how="masked", sites=4, noise_stds=[], confidence=0.95)
    assert metrics["joint"] == expected and metrics["joint"]["n"] == len(y)
    found = metrics["joint"]["pairs"]["fused_vs_public"]
    binned = paired_delong(y, in_bins(fused, 64), in_bins(public, 64), confidence=0.95)
    assert (found["difference"], found["low"]) == pytest.approx((binned.value, binned.low))
    exact = paired_delong(y, fused, public, confidence=0.95)
    assert exact.value is not None
    lost = sum(shared_bin(y, in_bins(scores, 64)) for scores in (fused, public)) / 2
    assert abs(found["difference"] - exact.value) <= lost + 1e-9
    assert [trained(study, site) for site in NAMES] == [1, 1, 1, 1]  # no epsilon for what nobody sees by itself


def in_bins(logits: NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    return np.minimum((expit(logits) * bins).astype(np.int64), bins - 1)


def shared_bin(y: NDArray[np.integer], bins: NDArray[np.int64]) -> float:
    """Share of the pairs of a woman with cancer and one without whose order is lost; such a pair counts half."""
    return float(np.mean(bins[y == 1][:, None] == bins[y == 0][None, :]))


def temperature(folder: Path, scope: str) -> float:
    with sqlite3.connect(folder / "journal.sqlite") as db:
        row = db.execute("SELECT document FROM reports WHERE scope = ?", (scope,)).fetchone()
    return float(json.loads(row[0])["temperature"])


@pytest.mark.parametrize("step", STEPS)
def test_joint_metrics_are_one_site_less_or_missing_and_the_study_complete_all_the_same(
    small_study: Make, tmp_path: Path, step: str
) -> None:
    study = make_summed(small_study, training__phases=one_round(), privacy__metrics="joint")
    lost = lose(("site-01", step), ("site-02", step))

    def fault(site: str, request: Frame) -> None:
        if getattr(request.message, "what", "") == "scores":
            lost(site, request)

    outcome, _ = run(study, tmp_path / "run", before=fault)
    assert outcome.status == "COMPLETE"
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert metrics["sites"] == {} and metrics["joint"] is None


def test_a_study_with_a_secure_sum_needs_the_coordinator_s_key(small_study: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="signing key"):
        run(make_summed(small_study), tmp_path / "run", signed=False)
    assert not (tmp_path / "run").exists()


def test_an_update_in_clear_is_refused(small_study: Make, tmp_path: Path) -> None:
    """A site that sends its update beside the masked one has not understood: it is not taken, and not kept."""
    hall = Hall(make_summed(small_study))
    try:
        reply = hall.exchange("site-01", hall.study.train(), hall.study.arrays)
        assert not reply.arrays
    finally:
        hall.close()


def one_round() -> list[dict[str, Any]]:
    return [{"name": "all", "rounds": 1, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]


def lose_error(site: str) -> Exception:
    from shared_model.errors import TrainerError

    return TrainerError(f"{site} is gone")


def run_observed(study: Any, folder: Path, observer: Any) -> None:
    import threading

    from server.rounds.signer import request_signer
    from simulations.engine.library import TrainerLibrary
    from simulations.engine.local import LocalGrid
    from tests.signed import KEY, NAME

    with TrainerLibrary(list(study.files.values())) as library:
        grid = LocalGrid(library, app=library)
        try:
            run_study(grid=grid, protocol=study.protocol, run_dir=folder, initial=study.arrays, observer=observer,
                      stop=threading.Event(), signer=request_signer(KEY, name=NAME), signing=KEY)  # fmt: skip
        finally:
            grid.close()
