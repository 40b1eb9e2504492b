"""A released model: the folder that a coordinator hands to its sites when a study has ended, and nothing of a patient.

    protocol.json        the study's protocol
    model.safetensors    the chosen weights
    release.json         thresholds, temperature and how well it did, from the coordinator's held-out women
    initial.safetensors  what training began from, for `site gain`
    passport.json        who vouches for all of the above, and limits of use; with the bill of materials
    localisation.json    optional: how well its heat maps point to known lesions (synthetic women); named by the
                         passport where it was measured before that was signed, bound to the weights by their hash

Written by `mammofed server release`, read by `mammofed site predict`, `explain`, `serve` and `gain`. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from shared_model.errors import PassportError, WeightsError
from shared_model.map_figures import LOCALISATION, NOT_HERE, UNSIGNED, MapFigures, read_map_figures
from shared_model.messages import MAX_FRAME_BYTES, weights_sha256
from shared_model.passport import PASSPORT, Passport, Vouched, vouch
from shared_model.protocol import Fraction, Protocol, Sha256
from shared_model.signing import VerifyKey

PROTOCOL, WEIGHTS, RELEASE = "protocol.json", "model.safetensors", "release.json"
INITIAL = "initial.safetensors"
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


class ReleasedBand(_Part):
    """A band of stated probability on `test`: women, and the share of them with cancer with Wilson's bounds. All None
    where there were too few women to be told."""

    low: Fraction
    high: Fraction
    n: int | None = Field(ge=0)
    rate: Fraction | None
    rate_low: Fraction | None
    rate_high: Fraction | None


class Release(_Part):
    """release.json.

    thresholds: on logits, by score (`fused`, `image`, `clinical`), `score > threshold` is positive; temperature: of the
    fused logit; both from `selection` (n, positives). specificity: what the thresholds were asked for. calibration:
    [mean stated probability, observed share, women] of equally large parts of `test`, after temperature. bands: women
    of `test`, each by her own probability; empty in releases from before they were written. epsilon: the greatest that
    a site's patients were exposed to, None without privacy.
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
    bands: tuple[ReleasedBand, ...] = Field(default=(), max_length=16)
    epsilon: float | None = Field(ge=0)
    delta: float | None

    @property
    def prevalence(self) -> float:
        """Share of women with cancer among those that the temperature was fitted on."""
        return self.selection_positives / self.selection_n


@dataclass(frozen=True)
class ReleasedModel:
    """A whole folder, checked. maps: how well its heat maps point to known lesions, None where not measured. vouched:
    by whose passport, or by nobody's."""

    protocol: Protocol
    weights: dict[str, NDArray[np.float32]]
    release: Release
    maps: MapFigures | None
    vouched: Vouched = field(default_factory=Vouched)

    @classmethod
    def read(cls, folder: Path, *, key: VerifyKey | None = None) -> ReleasedModel:
        """Read a folder that may have come over the telephone line: everything is checked against its hash, and those
        against the passport's signature where there is one.

        Args:
            key: of the coordinator who should have signed it, known from elsewhere; then a passport is asked for.

        Raises:
            SignatureError: the passport was changed, or is of another key.
            PassportError: it is malformed, is not of these files, or there is none and a key was given.
            WeightsError: absent, damaged, or the parts are of different models.
            ProtocolError: the protocol is damaged.
        """
        vouched = vouch(folder, key=key)
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
        if vouched.signed is not None:
            _agree(release, vouched.signed.passport, folder)
        maps = read_map_figures(folder / LOCALISATION, model_sha256=release.model_sha256, remedy=ASK)
        return cls(protocol, weights, release, maps, vouched)

    @property
    def without(self) -> tuple[str, ...]:
        """What the model was trained with and no woman who is scored at a site comes with, in words."""
        return tuple(f"Scored as without {name}, which the model knows and this command does not read."
                     for name in self.protocol.model.others)  # fmt: skip

    @property
    def maps_words(self) -> str:
        """What is to be said beside figures of heat maps: that the passport does not vouch for them, or names some that
        are not here. Empty where it does, or where nobody vouches for anything."""
        signed = self.vouched.signed
        if signed is None:
            return ""
        named = any(part.name == LOCALISATION for part in signed.passport.files)
        if self.maps is None:
            return NOT_HERE if named else ""
        return "" if named else UNSIGNED


def _agree(release: Release, passport: Passport, folder: Path) -> None:
    """What a release says and its passport says too; passports of older releases do not name release.json itself."""
    model = passport.model
    for what, found, expected in (
        ("study", release.study, passport.study), ("round", release.round, model.round),
        ("weights", release.model_sha256, model.sha256), ("thresholds", release.thresholds, model.thresholds),
        ("temperature", release.temperature, model.temperature),
        ("specificity", release.specificity, model.specificity),
    ):  # fmt: skip
        if found != expected:
            raise PassportError(f"{folder}: {RELEASE} and {PASSPORT} name different {what}", found=found,
                                expected=expected, remedy=ASK)  # fmt: skip


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
