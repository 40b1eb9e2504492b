"""What an arm of a comparison asks for is composed before a film is made for it."""

from __future__ import annotations

import pytest

from shared_model.errors import ConfigError
from simulations.baselines.suite import check_arms

STUDY = {"seed": 1, "name": "smoke", "baselines": ["public_only"]}


def arms(**chosen: list[str] | None) -> dict[str, object]:
    return {**STUDY, "arms": {name: None if own is None else {"overrides": own} for name, own in chosen.items()}}


def test_good_arms_pass_and_one_that_is_left_out_is_not_looked_at() -> None:
    check_arms(arms(plain=["privacy=none"], private=["privacy=patient", "privacy.epsilon=3.0"], away=None),
               ["study=smoke"])  # fmt: skip


@pytest.mark.parametrize(
    ("own", "words"),
    [(["privacy=nobody"], "arms.wrong: its overrides cannot be composed"),
     (["privacy.epsilom=3"], "arms.wrong: its overrides"), (["rounds=0"], "arms.wrong: rounds: too few")],
)  # fmt: skip
def test_a_wrong_arm_is_named_before_any_work(own: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_arms(arms(plain=["privacy=none"], wrong=own), ["study=smoke"])


def test_an_unknown_baseline_too() -> None:
    with pytest.raises(ConfigError, match="baselines: unknown"):
        check_arms({**arms(plain=[]), "baselines": ["psychic"]}, ["study=smoke"])
