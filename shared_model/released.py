"""A released model: the folder that a coordinator hands to its sites when a study has ended, and nothing of a patient.

    protocol.json        the study's protocol
    model.safetensors    the chosen weights
    release.json         thresholds, temperature and how well it did, from the coordinator's held-out women
    localisation.json    optional: how well its heat maps point to known lesions (synthetic women)

Written by `mammofed server release`, read by `mammofed site predict`, `explain` and `serve`. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from shared_model.errors import WeightsError
from shared_model.map_figures import LOCALISATION, MapFigures, read_map_figures
from shared_model.messages import MAX_FRAME_BYTES, weights_sha256
from shared_model.protocol import Fraction, Protocol, Sha256

PROTOCOL, WEIGHTS, RELEASE = "protocol.json", "model.safetensors", "release.json"
MAX_DOCUMENT_BYTES: Final = 1 << 20
ASK = "ask the coordinator for the folder that `mammofed server release` makes"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tested(_Part):
    """On the coordinator's `test` women, opened once. auc with the bounds of the protocol's confidence."""

    n: int = Field(ge=1)
    positives: int = Field(ge=0)
    auc: Fraction | None
    auc_low: Fraction | None
    auc_high: Fraction | None
    sensitivity: Fraction | None
    specificity: Fraction | None


class Release(_Part):
    """release.json.

    thresholds: on logits, by score (`fused`, `image`, `clinical`), `score > threshold` is positive; temperature: of the
    fused logit; both from `selection` (n, positives). specificity: what the thresholds were asked for. calibration:
    [mean stated probability, observed share, women] of equally large parts of `test`, after temperature. epsilon: the
    greatest that a site's patients were exposed to, None without privacy.
    """

    schema_version: Literal[1] = 1
    study: str = Field(max_length=64)
    protocol_sha256: Sha256
    model_sha256: Sha256
    round: int = Field(ge=0)
    thresholds: dict[str, float]
    temperature: float = Field(gt=0)
    specificity: float = Field(gt=0, lt=1)
    selection_n: int = Field(ge=2)
    selection_positives: int = Field(ge=1)
    test: Tested | None
    calibration: tuple[tuple[float, float, int], ...] = Field(max_length=100)
    epsilon: float | None = Field(ge=0)
    delta: float | None

    @property
    def prevalence(self) -> float:
        """Share of women with cancer among those that the temperature was fitted on."""
        return self.selection_positives / self.selection_n


@dataclass(frozen=True)
class ReleasedModel:
    """A whole folder, checked. maps: how well its heat maps point to known lesions, None where not measured."""

    protocol: Protocol
    weights: dict[str, NDArray[np.float32]]
    release: Release
    maps: MapFigures | None

    @classmethod
    def read(cls, folder: Path) -> ReleasedModel:
        """Read a folder that may have come over the telephone line: everything is checked against its hash.

        Raises:
            WeightsError: absent, damaged, or the parts are of different models.
            ProtocolError: the protocol is damaged.
        """
        protocol = Protocol.read(folder / PROTOCOL)
        release = _release(folder / RELEASE)
        weights = _weights(folder / WEIGHTS)
        for what, found, expected in (
            ("protocol", protocol.sha256, release.protocol_sha256),
            ("weights", weights_sha256(weights), release.model_sha256),
        ):
            if found != expected:
                raise WeightsError(f"{folder}: its {what} are not those of {RELEASE}", found=found[:16],
                                   expected=expected[:16], remedy=ASK)  # fmt: skip
        maps = read_map_figures(folder / LOCALISATION, model_sha256=release.model_sha256, remedy=ASK)
        return cls(protocol, weights, release, maps)


def _release(path: Path) -> Release:
    try:
        return Release.model_validate_json(_bounded(path, MAX_DOCUMENT_BYTES))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:5])
        raise WeightsError(f"{path} is no release: {faults}", remedy=ASK) from None


def _weights(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        arrays = load_safetensors(_bounded(path, MAX_FRAME_BYTES))
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise WeightsError(f"{path} is damaged: {type(error).__name__}", remedy=ASK) from None
    if any(array.dtype != np.float32 for array in arrays.values()):
        raise WeightsError(f"{path} holds tensors of a wrong type", expected="float32", remedy=ASK)
    return arrays


def _bounded(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", expected="a released model",
                           remedy=ASK) from None  # fmt: skip
    if len(data) > limit:
        raise WeightsError(f"{path} is too large", expected=f"at most {limit} bytes", remedy=ASK)
    return data
