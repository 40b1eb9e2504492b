"""Joint histograms without a secure sum: each site's counts with noise, charged first; one document at the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from client.privacy.egress_log import read_list
from client.privacy.ledger import Ledger
from client.privacy.randomness import SecureRandomness
from client.trainer.config import SiteConfig
from client.trainer.consent import _leaves
from client.trainer.service import TrainerService
from server.monitor.cells import gives
from server.reporting import Signature, write_passport, write_report
from server.reporting.answer import answer
from server.rounds.joint import _fault
from shared_model.errors import PrivacyError
from shared_model.evaluation.joint import joint_histogram, joint_result
from shared_model.evaluation.joint_report import joint_document
from shared_model.messages import ErrorReply, EvaluateReply, Frame, decode, encode, weights_sha256
from shared_model.passport import verify
from shared_model.passport.cli import passport as passport_command
from tests.protocol.test_secure_sum_rounds import one_round
from tests.server.reporting.test_report import Page
from tests.summed import run, with_true_weights

Make = Callable[..., Any]
BINS, STD = 8, 0.2  # little noise, which is drawn anew each time: what is asserted holds for nearly any of it


@pytest.fixture(scope="module")
def noised(study_maker: Make, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One whole study of two sites; (study, run directory, wire)."""
    root = tmp_path_factory.mktemp("noised")
    study = joint_study(lambda name, **settings: study_maker(root / name, **settings))
    outcome, wire = run(study, root / "run", signed=False)
    assert outcome.status == "COMPLETE"
    return study, root / "run", wire


def joint_study(make: Make, **changes: Any) -> Any:
    values = {"privacy__metrics": "joint", "privacy__metrics_bins": BINS, "privacy__metrics_noise_multiplier": STD,
              "privacy__epsilon": 1000.0, "training__phases": one_round(), "evaluation__bootstrap": 0,
              "federation__deadline_s": 600.0}  # fmt: skip
    return with_true_weights(make("study", private=True, patients=400, **(values | changes),
                                  federation__sites=[{"name": f"site-{n:02d}", "patients": 240, "weight": 1.0}
                                                     for n in (1, 2)]))  # fmt: skip


def ledger(study: Any, site: str) -> list[dict[str, Any]]:
    return [row for row in Ledger(study.config(site).state / "ledger.json").records() if row["group"] == "metrics"]


def test_the_pooled_document_is_that_of_the_counts_that_left_and_says_how_much_is_noise(noised: Any) -> None:
    _, folder, wire = noised
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    told = [reply.message for _, request, reply in wire.told if getattr(request.message, "scope", "") == "site"]
    assert [message.report for message in told[:2]] == ["{}", "{}"]  # the initial weights' scores stay at the site
    sent = [json.loads(message.report) for message in told[2:]]
    assert all(set(row) == {"bins", "noise_std", "counts"} and row["noise_std"] == STD for row in sent)
    total = sum(np.reshape(row["counts"], (2, BINS, BINS)) for row in sent)
    expected = joint_document({"public": total}, how="noised", sites=2, noise_stds=[STD, STD], confidence=0.95)
    assert metrics["joint"] == expected
    assert 0 < metrics["joint"]["pairs"]["fused_vs_public"]["noise_share"] < 1
    assert set(metrics["sites"]) == {"site-01", "site-02"} and "counts" not in metrics["sites"]["site-01"]
    assert all(0 <= row["auc_low"] < row["auc"] <= row["auc_high"] <= 1 for row in metrics["sites"].values())


def test_report_and_passport_are_made_of_it(noised: Any) -> None:
    _, folder, _ = noised
    found = json.loads((folder / "summary.json").read_text())["metrics"]["joint"]["pairs"]["fused_vs_public"]
    words = Page(write_report(folder).read_text()).text.partition("without moving a score")[2]
    assert "Each of 2 hospitals" in words and f"{100 * found['noise_share']:.0f}" in words
    assert "their epsilon has a column of its own" in (folder / "report.html").read_text()
    write_passport(folder, Signature.of_run())
    signed = verify(folder).signed
    said = signed.passport.metrics.sites
    assert set(said) == {"site-01", "site-02"} and all(0 <= score.auc <= 1 for score in said.values())
    summary = json.loads((folder / "summary.json").read_text())
    joint, pooled = summary["metrics"]["joint"], signed.passport.metrics.joint
    assert pooled is not None and (pooled.how, pooled.sites, pooled.bins) == ("noised", 2, BINS)
    fused = pooled.models["fused"]
    bounds = [joint["models"]["fused"][f"auc{end}"] for end in ("", "_low", "_high")]
    assert [fused.auc, fused.auc_low, fused.auc_high] == bounds
    assert pooled.n == fused.n == 10 * round(joint["n"] / 10) and pooled.noise_std == joint["noise_std"]
    assert pooled.epsilon == max(row["metrics_epsilon"] for row in summary["privacy"].values()) > 0
    assert pooled.pairs[0].difference == found["difference"]
    opening = next(line for line in answer(summary, noised[0].protocol) if line.startswith("On the own test women"))
    assert opening in " ".join(Page((folder / "report.html").read_text()).text.split())
    for part in (f"{fused.auc:.3f} (95 % interval {fused.auc_low:.3f} to", f"some {pooled.n}",
                 f"epsilon {pooled.epsilon:.2f}",
                 f"{100 * found['noise_share']:.0f} % of the variance"):  # fmt: skip
        assert part in opening
    shown = CliRunner().invoke(passport_command, ["show", str(folder)], env={"COLUMNS": "200"})
    assert "own test women of 2 hospitals together" in shown.output and "counts with noise" in shown.output
    assert f"{fused.auc:.3f} ({fused.auc_low:.3f}-{fused.auc_high:.3f})" in shown.output


def test_what_leaves_is_told_to_whoever_watches_and_to_whoever_approves(noised: Any) -> None:
    protocol = noised[0].protocol
    assert "counts of its own test women by two models' scores" in gives(protocol)
    words = " ".join(_leaves(protocol, 1000, trains=True, metrics=True))
    assert "noised counts of this site's own test women" in words and "histogram" not in words
    assert "own test women" not in " ".join(_leaves(protocol, 1000, trains=True, metrics=False))


def test_each_site_was_charged_once_and_lists_its_counts_as_noised(noised: Any) -> None:
    study, _, wire = noised
    for site in ("site-01", "site-02"):
        (row,) = ledger(study, site)
        assert (row["noise_multiplier"], row["steps"], row["state"]) == (STD, 1, "settled")
        listed = [value for _, values in read_list(study.config(site).state) for value in values]
        assert {v.protection for v in listed if v.name == "report.counts"} == {"noised"}
        reply = next(r.message for s, q, r in wire.told if s == site and getattr(q.message, "scope", "") == "site"
                     and not q.message.image_only)  # fmt: skip
        assert reply.privacy.noise_multiplier == STD and reply.privacy.epsilon > 0


def test_the_ledger_is_charged_before_noise_is_drawn(small_study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that dies over the noise has paid, and counts nothing for nothing."""
    study = joint_study(small_study)
    service = opened(study)
    try:
        ask(service, study, image_only=True)
        assert ledger(study, "site-01") == []

        def dies(*_: Any, **__: Any) -> Any:
            assert [row["state"] for row in ledger(study, "site-01")] == ["reserved"]
            raise PrivacyError("the generator is gone")

        monkeypatch.setattr(SecureRandomness, "normal", dies)
        assert "generator" in refused(service, study)
        assert [row["state"] for row in ledger(study, "site-01")] == ["reserved"]
    finally:
        service.close()


def test_only_the_initial_weights_are_compared_with_and_they_come_first(small_study: Make) -> None:
    study = joint_study(small_study)
    service, other = opened(study), {name: array + 1 for name, array in study.arrays.items()}
    try:
        assert "have not scored" in refused(service, study)
        assert "initial weights only" in refused(service, study, arrays=other, image_only=True)
        assert ask(service, study, image_only=True).report == "{}"
        first = ask(service, study)
        assert ask(service, study) == first  # the same noise again, and no second charge
        assert refused(service, study, temperature=2.0)
        assert len(ledger(study, "site-01")) == 1
    finally:
        service.close()


@pytest.mark.parametrize("temperature", [1.0, 1e-6])
def test_weights_that_overflow_for_some_women_get_noised_counts_and_no_error(
    small_study: Make, temperature: float
) -> None:
    """A refusal would tell of single women, and how many they are, without noise."""
    study = joint_study(small_study)
    service = opened(study)
    try:
        ask(service, study, image_only=True, temperature=temperature)
        large = {name: np.full_like(array, 1e38) for name, array in study.arrays.items()}
        reply = ask(service, study, arrays=large, temperature=temperature)
        counts = np.array(json.loads(reply.report)["counts"])
        women = len(service._site.indices("test"))
        assert reply.outcome == "evaluated" and abs(counts.sum() - women) < 8 * STD * counts.size**0.5
    finally:
        service.close()


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e300])
def test_no_temperature_is_taken_that_could_make_a_score_overflow(small_study: Make, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        joint_study(small_study).evaluate("site", temperature=temperature)


def test_a_site_whose_policy_lets_no_metrics_leave_counts_nobody(small_study: Make) -> None:
    study = joint_study(small_study)
    path = study.files["site-01"]
    path.write_text(SiteConfig.read(path).model_copy(update={"metrics": "none"}).to_json())
    service = opened(study)
    try:
        for first in (True, False):
            reply = ask(service, study, image_only=first)
            assert (reply.outcome, reply.report) == ("abstained", "{}") and "policy" in reply.reason
        assert ledger(study, "site-01") == [] and not (study.config("site-01").state / "reference").exists()
    finally:
        service.close()


@pytest.mark.parametrize(("change", "words"), [
    ({"counts": [0.5] * 3}, "finite"), ({"counts": ["x"] * 128}, "finite"), ({"counts": None}, "finite"),
    ({"noise_std": 0.19}, "less noise"), ({"noise_std": True}, "less noise"),
    ({"noise_std": 1e6, "counts": [1e6] + [0.5] * 127}, "more noise"),
    ({"counts": [1e6] + [0.5] * 127}, "beyond"), ({"counts": [-1e3] + [0.5] * 127}, "beyond"),
])  # fmt: skip
def test_counts_that_no_honest_site_sends_are_not_taken(noised: Any, change: Any, words: str) -> None:
    class Asking:
        protocol = noised[0].protocol

    honest = {"bins": BINS, "noise_std": STD, "counts": [0.5] * 128}
    assert _fault(Asking, honest) == ""  # type: ignore[arg-type]
    assert words in _fault(Asking, honest | change)  # type: ignore[arg-type]


def test_tables_that_disagree_or_go_below_zero_give_no_figure() -> None:
    """What a hostile site can put into a masked sum shows, as far as it can, in the sum itself."""
    rng = np.random.default_rng(0)
    y, one, two = rng.integers(0, 2, 300), rng.normal(size=300), rng.normal(size=300)
    table = joint_histogram(y, one, two, bins=BINS)
    for other in (joint_histogram(y, two, one, bins=BINS), table * 2):
        with pytest.raises(ValueError, match="same women"):
            joint_document({"public": table, "image": other}, how="masked", sites=3, noise_stds=[], confidence=0.95)
    with pytest.raises(ValueError, match="below 0"):
        joint_document({"public": table - 1}, how="masked", sites=3, noise_stds=[], confidence=0.95)
    few = joint_histogram(y[:12], one[:12], two[:12], bins=BINS)
    assert "withheld" in joint_document({"public": few}, how="masked", sites=3, noise_stds=[], confidence=0.95)


def test_noise_widens_every_interval_and_is_named() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 900)
    one, two = rng.normal(y * 1.2, 1), rng.normal(y * 0.6, 1)
    table = joint_histogram(y, one, two, bins=BINS)
    quiet, loud = (joint_document({"public": table}, how="noised", sites=3, noise_stds=stds, confidence=0.95)
                   for stds in ([], [4.0] * 3))  # fmt: skip
    for a, b in ((quiet["models"]["fused"], loud["models"]["fused"]), (quiet["models"]["public"],
                                                                       loud["models"]["public"])):  # fmt: skip
        assert b["auc_low"] < a["auc_low"] < a["auc"] == b["auc"] < a["auc_high"] < b["auc_high"]
    pairs = [d["pairs"]["fused_vs_public"] for d in (quiet, loud)]
    assert pairs[0]["noise_share"] == 0 < pairs[1]["noise_share"] and pairs[0]["p"] < pairs[1]["p"]


def test_noise_that_drowns_the_women_gives_a_wide_interval_within_the_possible() -> None:
    """Found in a study of sites with some 60 women: the estimate itself was 1.097."""
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 60)
    table = joint_histogram(y, rng.normal(y, 1), rng.normal(y, 1), bins=BINS).astype(float)
    rows = [joint_result([table + rng.normal(0, 3.0, table.shape)], confidence=0.95, noise_std=3.0) for _ in range(60)]
    found = [row.first for row in rows if row.first.value is not None]
    assert all(0 <= x.low <= x.value <= x.high <= 1 for x in found if x.low is not None and x.high is not None)
    assert any(x.value == 1 for x in found) and min(x.high - x.low for x in found) > 0.3  # type: ignore[operator]


def test_curves_take_no_step_of_fewer_than_ten_women() -> None:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 400)
    one = rng.normal(y * 2.0, 2.5)
    document = joint_document({"public": joint_histogram(y, one, one, bins=64)}, how="masked", sites=3, noise_stds=[],
                              confidence=0.95)  # fmt: skip
    model, m = document["models"]["fused"], int(y.sum())
    steps = np.diff(np.array(model["roc"]), axis=0) @ np.array([400 - m, m])
    assert steps.min() > 9.5 and len(steps) < 64 and min(row[2] for row in model["calibration"]) >= 10
    assert sum(row[2] for row in model["calibration"]) == 400
    assert model["roc"][0] == [0, 0] and model["roc"][-1] == [1, 1]


def opened(study: Any) -> TrainerService:
    return TrainerService(study.config("site-01"), compute=threading.Lock())


def exchanged(
    service: TrainerService, study: Any, *, arrays: Any = None, image_only: bool = False, **changes: Any
) -> Any:
    given = arrays or study.arrays
    request = study.evaluate("site", round_number=0 if image_only else 1, image_only=image_only,
                             weights_sha256=weights_sha256(given), **changes)  # fmt: skip
    return decode(service.exchange(encode(Frame(request, given)), wanted=lambda: True)).message


def ask(service: TrainerService, study: Any, **about: Any) -> EvaluateReply:
    reply = exchanged(service, study, **about)
    assert isinstance(reply, EvaluateReply), reply
    return reply


def refused(service: TrainerService, study: Any, **about: Any) -> str:
    reply = exchanged(service, study, **about)
    assert isinstance(reply, ErrorReply), reply
    return reply.reason
