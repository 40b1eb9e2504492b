"""`weights=PASSPORT`: what a simulated study takes from the run that it goes on from, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.reporting import Signature, write_passport
from shared_model.errors import ConfigError, PassportError
from simulations.composition import compose_study
from simulations.parties import HELD_OUT, split_of
from simulations.plan import noise_multipliers
from simulations.released import carry_ledgers, check_weights, continued, replacement_of, spent_before
from tests.finished import finish

ROUNDS = [{"name": "all", "rounds": 3, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, study_maker: Callable[..., Any]) -> Path:
    run = finish(study_maker(tmp_path_factory.mktemp("old") / "run", private=True, training__phases=ROUNDS))
    (run / "launch.json").write_text(json.dumps({"name": "first", "seed": 7, "cohort": {"kind": "synthetic"}}))
    write_passport(run, Signature.of_run())
    return run


def config(old: Path, *overrides: str) -> dict[str, Any]:
    return compose_study(["study=smoke", "name=second", f"weights={old}", "model.height=32", "model.width=32",
                          "privacy.epsilon=12", *overrides])  # fmt: skip


def test_the_women_keep_the_split_of_the_earlier_run(old: Path) -> None:
    settings = continued(config(old))
    assert split_of(settings, HELD_OUT)["salt"] == split_of(settings, "site_01")["salt"] == "first-7"
    assert split_of(continued(config(old, "salt=mine")), HELD_OUT)["salt"] == "mine"
    assert split_of(compose_study(["study=smoke"]), HELD_OUT)["salt"] == "smoke-1"


def test_a_model_of_another_shape_or_none_is_refused(old: Path, tmp_path: Path) -> None:
    check_weights(config(old))
    with pytest.raises(ConfigError, match=r"another model\.size"):
        check_weights(config(old, "model.size=small"))
    with pytest.raises(ConfigError, match="weights: unknown choice"):
        check_weights({**config(old), "weights": "publik"})
    (tmp_path / "passport.json").write_bytes((old / "passport.json").read_bytes())
    with pytest.raises(PassportError, match="cannot be read"):
        check_weights({**config(old), "weights": str(tmp_path)})


def test_what_was_spent_is_taken_off_before_noise_is_calibrated(old: Path) -> None:
    assert spent_before(config(old)) == 8.0 and spent_before(compose_study(["study=smoke"])) == 0.0
    (less, *_), (more, *_) = (noise_multipliers(config(old, f"privacy.epsilon={total}")) for total in (16.0, 12.0))
    (fresh, *_) = noise_multipliers(compose_study(["study=smoke", "privacy.epsilon=8.0"]))
    assert more > less and less == pytest.approx(fresh)
    with pytest.raises(ConfigError, match="exposed to as much before"):
        noise_multipliers(config(old, "privacy.epsilon=8.0"))


def test_the_protocol_says_when_it_replaces(old: Path) -> None:
    terms = replacement_of(config(old, "replacement.margin=0.03"))
    assert terms is not None and terms["margin"] == 0.03 and terms["study"] == "unit" and terms["epsilon_before"] == 8.0
    assert replacement_of(compose_study(["study=smoke"])) is None


def test_ledgers_go_on_and_one_that_is_there_stays(old: Path, tmp_path: Path) -> None:
    for name in ("site-01", "site-02"):
        (old / "sites" / name / "state").mkdir(exist_ok=True)
        (old / "sites" / name / "state" / "ledger.json").write_text("old")
    (old / "sites" / "site-01" / "state-ledger.anchor").write_text("anchor")
    for name in ("site-01", "site-02", "site-03", "evaluator"):
        (tmp_path / "sites" / name / "state").mkdir(parents=True)
    (tmp_path / "sites" / "site-02" / "state" / "ledger.json").write_text("own")
    assert carry_ledgers(config(old), tmp_path) == ["site-01"]
    assert (tmp_path / "sites" / "site-01" / "state" / "ledger.json").read_text() == "old"
    assert (tmp_path / "sites" / "site-01" / "state-ledger.anchor").read_text() == "anchor"
    assert (tmp_path / "sites" / "site-02" / "state" / "ledger.json").read_text() == "own"
    assert carry_ledgers(compose_study(["study=smoke"]), tmp_path) == []
