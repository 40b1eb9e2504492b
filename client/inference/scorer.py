"""A released model, built and ready: one woman -> what it says of her; used by predict, explain and serve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from shared_model.cohort.batch import PatientBatch
from shared_model.contract import Contract
from shared_model.errors import CohortError, ContractError
from shared_model.evaluation.operating import wilson
from shared_model.evaluation.use import BAND_NAMES
from shared_model.evaluation.use import BANDS as EDGES
from shared_model.explanation import DEFAULT_METHOD
from shared_model.fusion import FusionConfig, FusionModel, build_model, load_arrays
from shared_model.imaging import PipelineConfig
from shared_model.map_figures import NOT_MEASURED
from shared_model.released import ReleasedBand, ReleasedModel

LEAST_BAND = 20  # women; an observed rate of fewer is not stated


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the model says of one woman.

    logit, image_logit, clinical_logit: log odds; the latter two are None where the modality is missing. probability: of
    the fused logit after temperature, at the study's prevalence. positive: fused logit above the threshold of the
    study's specificity. band: of BAND_NAMES, the same as in the study's report. gate: weights of image and table.
    """

    logit: float
    image_logit: float | None
    clinical_logit: float | None
    probability: float
    positive: bool
    threshold: float
    band: str
    gate: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A band of risk: probabilities from low (included) to high, and what share of the held-out women in it had cancer
    (None below LEAST_BAND women), with Wilson bounds. n: None where there were too few to be told."""

    name: str
    low: float
    high: float
    n: int | None
    observed: float | None
    observed_low: float | None
    observed_high: float | None


class Scorer:
    """The model of a release on one device.

    Args:
        released: read and checked.
        contract: the installed one.

    Raises:
        ContractError: the model was trained with another data contract.
        WeightsError: the weights are not those of the protocol's model.
    """

    def __init__(self, released: ReleasedModel, contract: Contract, *, device: str = "cpu") -> None:
        protocol = released.protocol
        if contract.sha256 != protocol.contract.sha256:
            raise ContractError("the model was trained with another data contract", found=contract.version,
                                expected=protocol.contract.version, remedy="install the model's release")  # fmt: skip
        config = FusionConfig.of(protocol)
        self.released, self.contract, self.device = released, contract, torch.device(device)
        self.model: FusionModel = build_model(config, seed=0, prevalence=protocol.loss.prevalence)
        load_arrays(self.model, released.weights)
        self.model.to(self.device).eval()

    def check_pipeline(self, pipeline: PipelineConfig) -> None:
        """Refuse films that were prepared in another way than the model's.

        Raises:
            CohortError: they were.
        """
        wanted = self.released.protocol.pipeline.sha256
        if pipeline.sha256 != wanted:
            raise CohortError(
                "the site prepares films in another way than the model's study", found=pipeline.sha256[:16],
                expected=wanted[:16], remedy="set `imaging` of site.yaml as the study's protocol says",
            )  # fmt: skip

    @torch.no_grad()
    def score(self, woman: PatientBatch) -> Score:
        """One woman (B = 1)."""
        release = self.released.release
        output = self.model(woman.to(self.device))
        logit = float(output.logit_B[0])
        films, table = bool(woman.view_mask_BV.any()), bool(woman.clinical_mask_B[0])
        probability = self.probability(logit)
        return Score(
            logit=logit, image_logit=float(output.image_logit_B[0]) if films else None,
            clinical_logit=float(output.clinical_logit_B[0]) if table else None, probability=probability,
            positive=logit > release.thresholds["fused"], threshold=release.thresholds["fused"],
            band=BAND_NAMES[sum(probability >= edge for edge in EDGES)],
            gate=(float(output.gate_B2[0, 0]), float(output.gate_B2[0, 1])),
        )  # fmt: skip

    def probability(self, logit: float, *, prevalence: float | None = None) -> float:
        """Probability after temperature; at another prevalence by the shift of log odds (Saerens et al. 2002)."""
        release = self.released.release
        z = logit / release.temperature
        if prevalence is not None:
            z += _log_odds(prevalence) - _log_odds(release.prevalence)
        return 1.0 / (1.0 + math.exp(-z))

    def bands(self) -> tuple[Band, ...]:
        """The bands with the rates that were observed on the coordinator's `test` women."""
        if told := self.released.release.bands:
            return tuple(_band(name, row) for name, row in zip(BAND_NAMES, told, strict=True))
        edges = (0.0, *EDGES, 1.0)  # an earlier release: parts of the calibration curve, each by its mean
        found = []
        for name, low, high in zip(BAND_NAMES, edges[:-1], edges[1:], strict=True):
            bins = [(o, n) for stated, o, n in self.released.release.calibration if low <= stated < high]
            n, events = sum(n for _, n in bins), round(sum(o * n for o, n in bins))
            rate = wilson(events, n, confidence=0.95) if n >= LEAST_BAND else None
            value, least, most = (rate.value, rate.low, rate.high) if rate else (None, None, None)
            found.append(Band(name=name, low=low, high=high, n=n, observed=value, observed_low=least,
                              observed_high=most))  # fmt: skip
        return tuple(found)

    @property
    def without(self) -> tuple[str, ...]:
        """As :attr:`ReleasedModel.without`."""
        return self.released.without

    @property
    def identity(self) -> dict[str, Any]:
        """What every result states of the model."""
        release = self.released.release
        return {"study": release.study, "model_sha256": release.model_sha256,
                "protocol_sha256": release.protocol_sha256, "release": self.released.protocol.release,
                "round": release.round, "passport_sha256": self.released.vouched.sha256}  # fmt: skip

    def map_words(self, method: str = DEFAULT_METHOD) -> str:
        """What a heat map of this model is worth, to stand beside every one."""
        maps, further = self.released.maps, self.released.maps_words
        if maps is None:
            return further or NOT_MEASURED
        return f"{maps.words(method)} {further if method in maps.methods else ''}".rstrip()


def _band(name: str, row: ReleasedBand) -> Band:
    enough = row.n is not None and row.n >= LEAST_BAND
    rate = (row.rate, row.rate_low, row.rate_high) if enough else (None, None, None)
    return Band(name=name, low=row.low, high=row.high, n=row.n, observed=rate[0], observed_low=rate[1],
                observed_high=rate[2])  # fmt: skip


def _log_odds(share: float) -> float:
    return math.log(share / (1.0 - share))
