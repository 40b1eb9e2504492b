"""The next study from a released model: its protocol, its budget, and the decision at its end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from server.cli import server
from server.reporting import Signature, write_passport, write_report
from server.reporting.passport_again import sign_again
from server.reporting.replacement import decide, words_of
from server.retrain import Margins, retrain
from shared_model.cohort import Cohort, split_indices
from shared_model.errors import ConfigError, PassportError, ProtocolError, RoundError, StorageError
from shared_model.evaluation import Scores
from shared_model.evaluation.kept import keep_scores, kept_path
from shared_model.passport import PASSPORT, SignedPassport, former_name, verify
from shared_model.proposal import read_protocol
from shared_model.protocol import Protocol
from shared_model.signing import SigningKey
from tests.finished import finish, measure

ROUNDS = [{"name": "all", "rounds": 3, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]
MARGINS = Margins(0.02, 0.05, 20)
Maker = Callable[..., Any]


@pytest.fixture
def old(tmp_path: Path, study_maker: Maker) -> Any:
    """A finished study of 240 held-out women, with its passport; the evaluator's disk in it."""
    study = study_maker(tmp_path / "old", private=True, held_out=240, training__phases=ROUNDS)
    write_passport(finish(study), Signature.of_run())
    return study


def keep(study: Any, state: Path, *, noise: float = 0.0, gain: float = 2.0) -> None:
    """Scores of the evaluator's `test` women, as its trainer keeps them."""
    config = study.config("evaluator")
    cohort = Cohort.open(config.cohort)
    rows = split_indices(cohort, salt=config.salt, fractions=config.fractions)["test"]
    labels = cohort.labels[rows]
    base = np.random.default_rng(5).normal(size=len(rows)) + gain * labels
    logits = base + noise * np.random.default_rng(6).normal(size=len(rows))
    scores = Scores(labels, logits, logits, logits, np.full((len(rows), 2), 0.5))
    keep_scores(kept_path(state, study.protocol), scores, pseudonyms=[cohort.pseudonyms[r] for r in rows],
                vendors=list(cohort.attributes["vendor"].iloc[rows]))  # fmt: skip


def next_study(old: Any, root: Path, **changes: Any) -> Any:
    """The study that was retrained, finished, with its passport."""
    plan = retrain(old.root, "next", root / "plan", MARGINS)
    protocol = Protocol.create({**plan.protocol.model_dump(mode="json"), **changes})
    (root / "run").mkdir(parents=True)
    study = replace(old, root=root / "run", protocol=protocol)
    write_passport(finish(study), Signature.of_run())
    return study


def test_the_next_study_s_protocol(old: Any, tmp_path: Path) -> None:
    plan = retrain(old.root, "next", tmp_path / "plan", MARGINS)
    protocol, signed = read_protocol(plan.protocol_file), verify(old.root).signed
    assert protocol == plan.protocol and protocol.study == "next"
    assert protocol.initial_weights.origin == "study"
    assert protocol.initial_weights.sha256 == signed.passport.model.sha256
    assert plan.weights_file.read_bytes() == (old.root / "model.safetensors").read_bytes()
    terms = protocol.replacement
    assert terms is not None and (terms.passport_sha256, terms.study) == (signed.sha256, "unit")
    same = ("training", "federation", "loss", "evaluation", "contract", "pipeline", "model", "seed")
    assert all(getattr(protocol, name) == getattr(old.protocol, name) for name in same)
    assert signed.sha256[:16] in " ".join(plan.words())


def test_epsilon_bounds_both_studies_and_then_three(old: Any, tmp_path: Path) -> None:
    # Of site-01 an answer was lost: all of its budget, 8, may be gone.
    study = next_study(old, tmp_path / "second")
    assert study.protocol.privacy.epsilon == 16.0 and study.protocol.replacement.epsilon_before == 8.0
    third = retrain(study.root, "third", tmp_path / "third", MARGINS).protocol
    assert third.privacy.epsilon == pytest.approx(8.0 + 8.0)  # its own 8, and what its passport says was spent
    assert third.privacy.noise_multiplier == old.protocol.privacy.noise_multiplier


def test_what_cannot_be_continued_is_refused(old: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot go on"):
        retrain(old.root, "unit", tmp_path / "plan", MARGINS)
    data = bytearray((old.root / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (old.root / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(PassportError, match="not the file that the passport names"):
        retrain(old.root, "next", tmp_path / "plan", MARGINS)
    assert not (tmp_path / "plan").exists()


def test_a_protocol_names_what_it_replaces_or_nothing(old: Any, tmp_path: Path) -> None:
    values = retrain(old.root, "next", tmp_path / "plan", MARGINS).protocol.model_dump(mode="json")
    assert "replacement" not in old.protocol.model_dump(mode="json"), "earlier protocols keep their hash"
    assert Protocol.create({k: v for k, v in values.items() if k != "replacement"}).replacement is None
    with pytest.raises(ProtocolError, match="replacement: of a study that begins"):
        Protocol.create({**values, "initial_weights": {**values["initial_weights"], "origin": "public"}})
    with pytest.raises(ProtocolError, match="model_sha256"):
        Protocol.create({**values, "replacement": {**values["replacement"], "model_sha256": "0" * 64}})
    with pytest.raises(ProtocolError, match=r"nothing of privacy\.epsilon is left"):
        Protocol.create({**values, "privacy": {**values["privacy"], "epsilon": 8.0}})


def test_the_model_that_it_began_from_may_have_been_signed_again(old: Any, tmp_path: Path) -> None:
    study, state = next_study(old, tmp_path / "second"), old.config("evaluator").state
    keep(old, state)
    keep(study, state, noise=0.05)
    measure(old.root, pointing=0.6)
    sign_again(verify(old.root), Signature.of_run())
    assert decide(old.root, study.root, evaluator=old.files["evaluator"]).verdict.replaces


@pytest.mark.parametrize("beside", [False, True])
def test_a_passport_that_claims_to_replace_the_one_it_began_from_is_not_believed(
    old: Any, tmp_path: Path, study_maker: Maker, beside: bool
) -> None:
    """Anybody can write the hash into a passport, and lay a passport of that name beside it."""
    study, genuine = next_study(old, tmp_path / "second"), verify(old.root).signed
    other = study_maker(tmp_path / "other", held_out=240, training__phases=ROUNDS)
    write_passport(finish(other), Signature.of_run())
    made = verify(other.root).signed.passport
    claims = made.model_copy(update={"replaces": (genuine.sha256,)})
    forged = SignedPassport.sign(claims, kind="run", name="run", key=SigningKey.generate())
    (other.root / PASSPORT).write_bytes(forged.to_json())
    if beside:
        (other.root / former_name(genuine.sha256)).write_bytes(genuine.to_json())
    for one in (other, study):
        keep(one, old.config("evaluator").state)
    with pytest.raises(PassportError, match="began from another model"):
        decide(other.root, study.root, evaluator=old.files["evaluator"])


@pytest.mark.parametrize(("noise", "replaces"), [(0.05, True), (3.0, False)])
def test_the_decision(old: Any, tmp_path: Path, noise: float, replaces: bool) -> None:
    study, state = next_study(old, tmp_path / "second"), old.config("evaluator").state
    keep(old, state)
    keep(study, state, noise=noise)
    site = old.files["evaluator"]
    cohorts = {"site-01": (old.config("site-01").cohort, old.config("site-02").cohort)}
    found = decide(old.root, study.root, evaluator=site, cohorts=cohorts)
    assert found.verdict.replaces is replaces
    document = json.loads((study.root / "replacement.json").read_text())
    assert document["replaces"] is replaces and document["old"]["passport_sha256"] == verify(old.root).signed.sha256
    where = {row["where"] for row in document["comparisons"]}
    assert where == {"overall", "site", "subgroup"}
    assert len(document["drift"]["site-01"]) > 5
    assert words_of(found)[0] == f"The model of next {'replaces' if replaces else 'does not replace'} that of unit."
    sites = [row for row in document["comparisons"] if row["where"] == "site"]
    assert {row["verdict"] for row in sites} == {"not judged"}, "14.8 women with cancer are fewer than 20"
    _check_page(write_report(study.root).read_text(), document)
    judged = CliRunner().invoke(server, ["judge", str(old.root), str(study.root), "--evaluator", str(site.parent)])
    assert "Report    " in judged.output, judged.output  # made again, with the verdict in it
    assert "Drift: not done" in (study.root / "report.html").read_text()  # no cohorts were named this time


def _check_page(page: str, document: dict[str, Any]) -> None:
    """Verdict first, every place where it was judged or could not be, and the drift."""
    text = " ".join(re.sub(r"<[^>]*>", " ", page.partition('id="replacement"')[2]).split())
    answer = "replaces the model of unit." if document["replaces"] else "does not replace the model of unit: not shown"
    assert f"It {answer}" in text.partition("Passports: old")[0]
    for row in document["comparisons"]:
        name = row["name"] if row["where"] == "overall" else f"{row['where']} {row['name'].replace('_', ' ')}"
        assert re.search(rf"{re.escape(name)} [^%]* {row['margin']:.3f} {row['verdict']}", text), name
    assert "Drift at site-01" in text and "By chance" in text


def test_a_study_that_nobody_judged_says_so_and_another_study_s_verdict_is_refused(old: Any, tmp_path: Path) -> None:
    study = next_study(old, tmp_path / "second")
    assert "nobody has judged yet whether it replaces it" in write_report(study.root).read_text()
    assert 'id="replacement"' not in write_report(old.root).read_text()
    rows: dict[str, Any] = {"replaces": True, "old": {}, "new": {"study": "other"}, "comparisons": [], "drift": {}}
    (study.root / "replacement.json").write_text(json.dumps(rows))
    with pytest.raises(StorageError, match="does not judge this study's model"):
        write_report(study.root)


def test_only_the_same_women_and_the_model_it_began_from_are_compared(old: Any, tmp_path: Path) -> None:
    study, state = next_study(old, tmp_path / "second"), old.config("evaluator").state
    keep(study, state)
    with pytest.raises(RoundError, match="kept no scores of unit"):
        decide(old.root, study.root, evaluator=old.files["evaluator"])
    keep(old, state)
    other = tmp_path / "other.json"
    values = json.loads(old.files["evaluator"].read_text())
    other.write_text(json.dumps({**values, "salt": "another"}))
    with pytest.raises(RoundError, match="not the one that was scored"):
        decide(old.root, study.root, evaluator=other)
    with pytest.raises(ProtocolError, match="does not say when"):
        decide(study.root, old.root, evaluator=old.files["evaluator"])
