"""A simulated study that goes on from a released model: `weights=PASSPORT`; called by launcher, plan and proposals.

Needs no torch. The women keep their split (`salt`), or those who trained the old model would judge the new one, and the
simulated hospitals keep their ledgers, as real ones do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.reporting.replacement import decide, words_of
from server.retrain import spent_by
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, StorageError
from shared_model.messages import Arrays
from shared_model.passport import find_passport, verify
from shared_model.passport.signed import SignedPassport
from shared_model.passport.verify import WEIGHTS, read_weights
from shared_model.protocol import Protocol
from shared_model.weights import public_weights

Config = dict[str, Any]
NAMED = ("public", "random")
LEDGER = ("state-ledger.anchor", "state/ledger.json")  # of one simulated hospital


@dataclass(frozen=True)
class ReleasedStart:
    """A verified model. folder: where its passport lies."""

    folder: Path
    signed: SignedPassport
    weights: Arrays

    @property
    def recipe(self) -> str:
        """For the protocol's `initial_weights`."""
        return f"released {self.signed.passport.study}, passport {self.signed.sha256}"[:200]


def is_released(config: Mapping[str, Any]) -> bool:
    """Whether `weights` names a passport rather than `public` or `random`."""
    return config["weights"] not in NAMED


def read_released(place: Path) -> ReleasedStart:
    """Verify a released model and read its weights.

    Raises:
        PassportError, SignatureError: it is not what its passport says.
    """
    found = verify(place)
    return ReleasedStart(found.folder, found.signed, read_weights(found.folder / WEIGHTS))


def check_weights(config: Mapping[str, Any]) -> None:
    """Refuse initial weights that cannot be had, before anything is made.

    Raises:
        ConfigError, WeightsError, PassportError, SignatureError: naming the setting, or what is wrong with the model.
    """
    if config["weights"] == "public":
        public_weights(config["model"]["size"])  # not shipped for every size: better said now than after the films
    if not is_released(config):
        return
    place = Path(str(config["weights"]))
    if not find_passport(place).exists():
        raise ConfigError("weights: unknown choice", found=config["weights"],
                          expected="public, random, or the passport of a released model")  # fmt: skip
    said = verify(place).signed.passport
    for what, found, expected in (
        ("status", said.status, "COMPLETE"), ("model.size", said.model.size, config["model"]["size"]),
        ("fusion.kind", said.model.fusion, config["fusion"]["kind"]),
        ("data contract", said.data.contract_sha256, load_contract().sha256),
        ("film height", said.data.height, config["model"]["height"]),
        ("film width", said.data.width, config["model"]["width"]),
    ):
        if found != expected:
            raise ConfigError(f"weights: the released model has another {what}", found=str(found)[:64],
                              expected=str(expected)[:64],
                              remedy="a study goes on with the same kind of model and data")  # fmt: skip


def replacement_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The protocol's `replacement`: of a study from a released model alone."""
    if not is_released(config):
        return None
    signed = verify(Path(config["weights"])).signed
    return {
        "study": signed.passport.study, "passport_sha256": signed.sha256, "model_sha256": signed.passport.model.sha256,
        "epsilon_before": spent_before(config), **config["replacement"],
    }  # fmt: skip


def spent_before(config: Mapping[str, Any]) -> float:
    """Epsilon of the patient who was exposed most in the released model's study; 0 without one, or without privacy."""
    if not is_released(config):
        return 0.0
    return spent_by(verify(Path(config["weights"])).signed.passport)


def continued(config: Config) -> Config:
    """The settings of a study, with the split of the simulated run that it goes on from, where that is known."""
    if not is_released(config):
        return config
    place = Path(str(config["weights"])).resolve()
    run_dir = find_passport(place).parent
    settings = {**config, "weights": str(place)}
    if config.get("salt") is None and (run_dir / "launch.json").is_file():
        try:
            before = json.loads((run_dir / "launch.json").read_bytes())
            settings["salt"] = before.get("salt") or f"{before['name']}-{before['seed']}"
        except (ValueError, KeyError, AttributeError, TypeError):
            raise StorageError(f"{run_dir / 'launch.json'} is damaged", remedy="give `salt` yourself") from None
    return settings


def carry_ledgers(config: Mapping[str, Any], run_dir: Path) -> list[str]:
    """Give each simulated hospital the ledger that it had in the run that this study goes on from, before it opens one.

    Returns:
        names of those that have one now.
    """
    if not is_released(config):
        return []
    earlier = find_passport(Path(config["weights"])).parent
    carried = []
    for home in sorted((run_dir / "sites").iterdir()):
        if carry_ledger(earlier / "sites" / home.name, home):
            carried.append(home.name)
    return carried


def carry_ledger(before: Path, home: Path) -> bool:
    """Copy a simulated hospital's ledger from one folder of its to another that has none yet; whether it has one now.
    The ledger comes last and whole: where it is, its anchor is, too."""
    if not (before / LEDGER[1]).is_file() or (home / LEDGER[1]).exists():
        return False
    for name in LEDGER:
        if (before / name).is_file():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            draft = (home / name).with_name(f"{Path(name).name}.partial")
            shutil.copy2(before / name, draft)
            draft.replace(home / name)
    return True


def judge_run(config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None]) -> None:
    """At the end of a study from a released model: decide whether its model replaces that one, and say so."""
    if Protocol.read(run_dir / "protocol.json").replacement is None:
        return
    earlier = find_passport(Path(config["weights"])).parent
    old, new = (folder / "sites" / "evaluator" / "site.json" for folder in (earlier, run_dir))
    if not old.is_file():
        say(f"Whether it replaces {earlier} is not judged here: the evaluator of that study is not on this machine; "
            "`mammofed server judge`")  # fmt: skip
        return
    pairs = {}
    for home in sorted((run_dir / "sites").iterdir()):
        files = [folder / "sites" / home.name / "site.json" for folder in (earlier, run_dir)]
        if all(file.is_file() for file in files):
            then, now = (Path(json.loads(file.read_bytes())["cohort"]) for file in files)
            pairs[home.name] = (then, now)
    for line in words_of(decide(earlier, run_dir, evaluator=new, earlier_evaluator=old, cohorts=pairs)):
        say(line)
