"""The whole protocol of a study: its parts together, and what follows from them."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from shared_model.errors import ProtocolError
from shared_model.protocol.contradictions import contradiction
from shared_model.protocol.evaluation import EvaluationTerms, ReplacementTerms
from shared_model.protocol.federation import FederationTerms
from shared_model.protocol.kept import canonical, content_of, read_file
from shared_model.protocol.material import ContractTerms, ModelTerms, PipelineTerms, WeightsTerms
from shared_model.protocol.privacy import ExplorationTerms, PrivacyTerms
from shared_model.protocol.terms import Name, Terms
from shared_model.protocol.training import LossTerms, TrainingTerms


class Protocol(Terms):
    """A whole study. Build it with :meth:`create`, read it with :meth:`from_json`; its hash is :attr:`sha256`."""

    schema_version: Literal[1] = 1
    study: Name
    release: str = Field(max_length=32)
    seed: int = Field(ge=0, lt=1 << 32)
    contract: ContractTerms
    pipeline: PipelineTerms
    model: ModelTerms
    initial_weights: WeightsTerms
    loss: LossTerms
    training: TrainingTerms
    privacy: PrivacyTerms
    federation: FederationTerms
    evaluation: EvaluationTerms
    exploration: ExplorationTerms | None = None
    replacement: ReplacementTerms | None = None

    @model_serializer(mode="wrap")
    def _without_replacement(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that replaces nothing says nothing of it, so that earlier protocols keep their hash."""
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name != "replacement" or value is not None}

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if fault := contradiction(self):
            raise ValueError(fault)
        return self

    @property
    def private(self) -> bool:
        """Whether patients are protected by differential privacy."""
        return self.privacy.mode == "patient"

    @property
    def metrics_alone(self) -> bool:
        """Whether a site's metrics of its own women leave it by themselves, and not in a sum over the sites."""
        return self.privacy.metrics == "final" or (self.privacy.metrics == "joint" and not self.summed)

    @property
    def summed(self) -> bool:
        """Whether the coordinator sees the sum of updates only."""
        return self.federation.secure_sum == "masked"

    @property
    def coarse_times(self) -> bool:
        """Whether a hospital's seconds are told in steps (`shared_model.phases`): single women or sites are hidden."""
        return self.private or self.summed

    @property
    def rounds(self) -> int:
        """Number of rounds R."""
        return self.training.rounds

    def sample_rate(self, round_number: int) -> float:
        """q of round 1..R: the phase's own, or the training's."""
        return self.training.phase(round_number).sample_rate or self.training.sample_rate

    def steps(self, round_number: int) -> int:
        """Optimiser steps of a site in round 1..R."""
        return self.training.phase(round_number).steps_per_round or self.training.steps_per_round

    def noise_multiplier(self, round_number: int) -> float:
        """Sigma of round 1..R: noise std divided by C; 0 without privacy."""
        return self.privacy.noise_multiplier * self.training.phase(round_number).noise_factor

    def expected_batch(self, site: str, round_number: int) -> float:
        """Public expected number of patients in a step at `site`: q times its *rounded* size (at least 1)."""
        return max(1.0, self.sample_rate(round_number) * self.federation.site(site).patients)

    def mechanisms(self, rounds: int) -> tuple[tuple[float, float, int], ...]:
        """(sigma, q, steps) of a site that took part in the first `rounds` rounds, phase by phase; for accountants."""
        done: dict[tuple[float, float], int] = {}
        for number in range(1, rounds + 1):
            key = self.noise_multiplier(number), self.sample_rate(number)
            done[key] = done.get(key, 0) + self.steps(number)
        return tuple((sigma, rate, steps) for (sigma, rate), steps in done.items())

    def learning_rate(self, round_number: int) -> float:
        """Step size of the fusion part in round 1..R, after decay within the whole study."""
        phase = self.training.phase(round_number)
        progress = (round_number - 1) / self.rounds
        factor = {
            "constant": 1.0,
            "sqrt": math.sqrt(1.0 - progress),
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        }[self.training.decay]
        return phase.learning_rate * factor

    def canonical(self) -> bytes:
        """The bytes that are hashed: JSON with sorted keys and no spaces."""
        return canonical(self.model_dump(mode="json"))

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of :meth:`canonical`."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @classmethod
    def create(cls, values: dict[str, object], *, source: str = "configuration") -> Protocol:
        """Check plain values and freeze them.

        Raises:
            ProtocolError: naming every field that is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(part) for part in e['loc']) or 'protocol'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors(include_url=False)
            )
            raise ProtocolError(
                f"{source} is not a valid protocol: {faults}", remedy="correct the named fields"
            ) from None

    @classmethod
    def from_json(cls, data: bytes | str, *, source: str = "protocol") -> Protocol:
        """Read a protocol (or the envelope that :meth:`write` makes) from bytes that are not trusted.

        Raises:
            ProtocolError: too large, not JSON, wrong schema, frozen by another version, or the stated hash is not that
                of the content.
        """
        protocol, stated = cls._kept(data, source)
        if stated != protocol.sha256:
            raise ProtocolError(
                f"{source} was frozen by another version of MammoFed, whose protocols have other fields",
                found=protocol.sha256, expected=stated,
                remedy="go on with the version that froze it; `mammofed status` and `mammofed monitor` show it here",
            )  # fmt: skip
        return protocol

    @classmethod
    def _kept(cls, data: bytes | str, source: str) -> tuple[Protocol, str]:
        """A protocol and the hash that it was frozen under: that of the file's own values, without fields that only
        later versions have. Raises as :meth:`from_json`, but for such fields."""
        values, stated = content_of(data, source)
        own = hashlib.sha256(canonical(values)).hexdigest()
        try:
            protocol = cls.create(values, source=source)
        except ProtocolError as error:
            if stated != own:
                raise
            raise ProtocolError(f"{source} was frozen by another version of MammoFed, and this one cannot read it",
                                found=error.problem, remedy="use the version that froze it") from None  # fmt: skip
        if stated in (None, protocol.sha256):
            return protocol, protocol.sha256
        if stated != own:
            raise ProtocolError(
                f"{source} was changed after it was frozen", found=own, expected=stated,
                remedy="take the file from the coordinator again",
            )  # fmt: skip
        return protocol, own

    def to_json(self) -> str:
        """The envelope `{"protocol": ..., "sha256": ...}`, indented for reading."""
        return json.dumps({"protocol": self.model_dump(mode="json"), "sha256": self.sha256}, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Protocol:
        """Read a protocol file of bounded size."""
        return cls.from_json(read_file(path), source=str(path))

    @classmethod
    def read_kept(cls, path: Path) -> tuple[Protocol, str]:
        """Read a protocol file only to look at it: the protocol, and the hash that it was frozen under.

        A file of an earlier version, which has fewer fields, is taken, too, where it is unchanged; its protocol has
        another :attr:`sha256` then. Never for what is approved or run: that is :meth:`read`.

        Raises:
            ProtocolError: as :meth:`read`, but for such a file.
        """
        return cls._kept(read_file(path), str(path))
