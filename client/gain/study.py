"""Scores a site's own test women with the shared model, the initial weights and a model of the site's own; `site gain`.

Everything stays at the site: cohort and weights are read, nothing is sent, and neither the ledger nor the trainer's
state is touched. The site's own model is trained here and now by the study's own recipe without noise, because what
never leaves the building needs none; it takes the last round, for alone a hospital has no `selection` of other women.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from client.privacy.randomness import SeededRandomness
from client.trainer.config import SiteConfig
from client.trainer.evaluate import PATIENTS_AT_A_TIME, ImageOnly
from client.trainer.models import WarmModels
from client.training.features import FeatureCache
from client.training.local import train_round
from shared_model.bounded import read_at_most
from shared_model.cohort import Cohort, split_indices
from shared_model.contract import load_contract
from shared_model.errors import CohortError, ConfigError, StorageError
from shared_model.evaluation import Scores, evaluate_cohort
from shared_model.evaluation.evidence import SENSITIVITY
from shared_model.evaluation.gain import SHARED, gain
from shared_model.fusion import FusionModel, load_arrays
from shared_model.messages import Arrays
from shared_model.passport import Vouched, vouch
from shared_model.protocol import Protocol

MAX_WEIGHTS_BYTES = 1 << 30
LOAD_BYTES = 64 << 20
REPLICATES = 500
Tell = Callable[[int, int], None]  # (rounds of the site's own model done, in all)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a gain is worked out from. summary: the coordinator's `summary.json`, for the threshold; may be empty.
    vouched: who vouches for the model."""

    config: SiteConfig
    protocol: Protocol
    model: Arrays
    initial: Arrays | None
    summary: Mapping[str, Any]
    vouched: Vouched


def studies_of_run(place: Path, *, site: str | None, model: Path | None, initial: Path | None,
                   summary: Path | None) -> list[Study]:  # fmt: skip
    """The studies of a run directory of `mammofed simulate`, one a site.

    Args:
        site: only this one. model, initial, summary: instead of those of the run.

    Raises:
        ConfigError: no such site. StorageError, ProtocolError: a file is absent or damaged.
        PassportError, SignatureError: the run has a passport, and its model is not what that names.
    """
    protocol = Protocol.read(place / "protocol.json")
    vouched = vouch(place) if model is None else Vouched()
    weights, start = read_weights(model or place / "model.safetensors"), initial or place / "initial.safetensors"
    told = read_object(summary or place / "summary.json")
    names = [s.name for s in protocol.federation.sites if site in (None, s.name)]
    if not names:
        raise ConfigError("the study has no such site", found=site,
                          expected=", ".join(s.name for s in protocol.federation.sites))  # fmt: skip
    return [
        Study(config=SiteConfig.read(place / "sites" / name / "site.json"), protocol=protocol, model=weights,
              initial=read_weights(start) if start.exists() else None, summary=told, vouched=vouched)
        for name in sorted(names)
    ]  # fmt: skip


def work_out(study: Study, *, local: bool, tell: Tell | None = None) -> dict[str, Any]:
    """The `gain` document of one site, see `shared_model.evaluation.gain`, with `site`, `study` and `protocol_sha256`.

    Args:
        local: train the site's own model as well; takes as long as the study's rounds take here.

    Raises:
        CohortError: the cohort does not fit the protocol, or has no test women.
    """
    config, protocol = study.config, study.protocol
    cohort = Cohort.open(config.cohort)
    _check(cohort, protocol)
    split = split_indices(cohort, salt=config.salt, fractions=config.fractions)
    test = split["test"]
    if not len(test):
        raise CohortError(f"{config.site} has no test women", expected="at least one", remedy="prepare more patients")
    bench = _Bench(cohort, protocol, _device(config.device))
    shared = bench.scores(study.model, test)
    logits = {SHARED: shared.fused}
    if study.initial is not None:
        logits["public"] = bench.scores(study.initial, test, image_only=True).image
        if local:
            logits["local"] = bench.train(study.initial, split["train"], config.site, test, tell).fused
    fused = study.summary.get("metrics", {}).get("held_out") or {}
    threshold = fused.get("models", {}).get("fused", {}).get("threshold")
    terms = protocol.evaluation
    document = gain(
        shared.labels, logits, thresholds={} if threshold is None else {SHARED: threshold}, confidence=terms.confidence,
        wanted_specificity=terms.specificity if threshold is not None else None,
        sensitivity=terms.sensitivity or SENSITIVITY, replicates=REPLICATES,
    )  # fmt: skip
    return {"site": config.site, "study": protocol.study, "protocol_sha256": protocol.sha256,
            "passport_sha256": study.vouched.sha256, **document}  # fmt: skip


class _Bench:
    """One cohort on one device with the protocol's model."""

    def __init__(self, cohort: Cohort, protocol: Protocol, device: torch.device) -> None:
        self.cohort, self.protocol, self.device = cohort, protocol, device
        self._models, self._features = WarmModels(), FeatureCache(cohort, load_bytes=LOAD_BYTES)

    def _with(self, arrays: Arrays) -> FusionModel:
        model, _ = self._models.take(self.protocol, self.device)
        load_arrays(model, arrays)
        return model

    def _score(self, model: FusionModel, rows: NDArray[np.int64], *, image_only: bool = False) -> Scores:
        encoded = self._features.encoded(model, rows, device=self.device)
        model.encoded = True
        try:
            return evaluate_cohort(model, ImageOnly(encoded) if image_only else encoded, rows,
                                   batch_size=PATIENTS_AT_A_TIME, device=self.device)  # fmt: skip
        finally:
            model.encoded = False

    def scores(self, arrays: Arrays, rows: NDArray[np.int64], *, image_only: bool = False) -> Scores:
        """Scores of the women at `rows`."""
        return self._score(self._with(arrays), rows, image_only=image_only)

    def train(
        self, initial: Arrays, rows: NDArray[np.int64], site: str, test: NDArray[np.int64], tell: Tell | None
    ) -> Scores:
        """Train alone from the study's initial weights by its recipe, without noise, and score the women of `test`."""
        terms, model = alone(self.protocol), self._with(initial)
        fields = tuple(tuple(columns) for columns in load_contract().groups.values())
        for number in range(1, terms.rounds + 1):
            randomness = SeededRandomness(seed=terms.seed, site=site, round_number=number)
            train_round(model=model, cohort=self.cohort, indices=rows, protocol=terms, site=site, round_number=number,
                        device=self.device, randomness=randomness, fields=fields, features=self._features)  # fmt: skip
            if tell is not None:
                tell(number, terms.rounds)
        return self._score(model, test)


def alone(protocol: Protocol) -> Protocol:
    """The protocol as a hospital would run it by itself: the same recipe without noise, all patients its own."""
    values = protocol.model_dump(mode="json")
    values["privacy"] |= {"mode": "none", "noise_multiplier": 0.0, "metrics": "none"}
    values["training"] |= {"engine": "batch"}
    values["federation"] |= {"strategy": "fedavg"}
    return Protocol.create(values)


def read_weights(path: Path) -> Arrays:
    """Tensors of a safetensors file of bounded size.

    Raises:
        StorageError: absent, too large or damaged.
    """
    data = read_at_most(path, MAX_WEIGHTS_BYTES, error=StorageError, remedy="let the study end first, or give the file")
    try:
        return dict(load_safetensors(data))
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StorageError(f"{path} is damaged: {type(error).__name__}", remedy="fetch it again") from None


def read_object(path: Path) -> Mapping[str, Any]:
    """A JSON object of a file, {} for JSON of another kind.

    Raises:
        StorageError: absent or no JSON.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", remedy="let the study end first") from None
    except (ValueError, RecursionError):
        raise StorageError(f"{path} is not JSON", remedy="fetch it again") from None
    return found if isinstance(found, dict) else {}


def _check(cohort: Cohort, protocol: Protocol) -> None:
    for what, found, expected in (
        ("data contract", cohort.contract_sha256, protocol.contract.sha256),
        ("imaging pipeline", cohort.pipeline_sha256, protocol.pipeline.sha256),
    ):
        if found != expected:
            raise CohortError(f"the cohort has another {what} than the protocol", found=found[:12],
                              expected=expected[:12], remedy="prepare the cohort again")  # fmt: skip


def _device(name: str) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
