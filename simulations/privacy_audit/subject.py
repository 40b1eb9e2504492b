"""What is audited: a study's protocol, one hospital's women, the initial weights; used by every check.

Checks change a protocol only in what is post-processing (the optimiser behind the noise) or in what the auditor may
choose as a hostile coordinator could (steps a round, the sampling rate, the learning rate): the noise multiplier, the
clipping norm, the phase with its trained tensors, the engine and its precision stay the study's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.accountant import Account
from client.privacy.randomness import Randomness
from client.training.features import FeatureCache, Films
from client.training.local import LOAD_BYTES, train_round
from shared_model.errors import ConfigError
from shared_model.fusion import FusionConfig, FusionModel, build_model, load_arrays
from shared_model.protocol import PhaseTerms, Protocol

Arrays = Mapping[str, NDArray[np.float32]]
Moves = dict[str, NDArray[np.float64]]  # trained tensor -> by how much a round moved it
Indices = NDArray[np.int64]

ENCODED_ONCE = ("linear", "features")  # scopes whose films are encoded once: a training takes seconds


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A private study at one hospital.

    cohort: the hospital's women; indices: positions of those it trains on; fields: columns of each clinical field.
    weights: where the study begins.

    Raises:
        ConfigError: a study without privacy, which promises nothing that could be audited.
    """

    protocol: Protocol
    site: str
    cohort: Films
    indices: Indices
    fields: Sequence[Sequence[int]]
    weights: Arrays
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if not self.protocol.private:
            raise ConfigError("privacy.mode=none promises no epsilon, so that there is nothing to audit",
                              expected="privacy=patient")  # fmt: skip

    @property
    def phases(self) -> tuple[tuple[int, PhaseTerms], ...]:
        """First round of each phase, and the phase."""
        found, first = [], 1
        for phase in self.protocol.training.phases:
            found.append((first, phase))
            first += phase.rounds
        return tuple(found)

    @property
    def cheap(self) -> bool:
        """Whether every phase trains behind films that are encoded once, or on the table alone."""
        phases = self.protocol.training.phases
        return all(phase.objective == "clinical" or phase.scope in ENCODED_ONCE for phase in phases)

    def model(self, weights: Arrays | None = None) -> FusionModel:
        """A fresh model with the study's initial weights, or others."""
        terms = self.protocol
        config = FusionConfig(
            size=terms.model.size, fusion=terms.model.fusion, n_clinical=terms.contract.n_features,
            height=terms.pipeline.height, width=terms.pipeline.width,
        )  # fmt: skip
        model = build_model(config, seed=terms.seed, prevalence=terms.loss.prevalence)
        load_arrays(model, self.weights if weights is None else weights)
        return model

    def train(
        self, protocol: Protocol, *, cohort: Films, indices: Indices, randomness: Randomness, round_number: int = 1,
        model: FusionModel | None = None, features: FeatureCache | None = None,
    ) -> FusionModel:  # fmt: skip
        """One round by the product's own function; the model is changed in place and returned."""
        model = self.model() if model is None else model
        train_round(
            model=model, cohort=cohort, indices=indices, protocol=protocol, site=self.site,
            round_number=round_number, device=self.device, randomness=randomness, fields=self.fields, features=features,
        )  # fmt: skip
        return model

    def moves(
        self, protocol: Protocol, *, cohort: Films, indices: Indices, randomness: Randomness,
        features: FeatureCache | None = None,
    ) -> Moves:  # fmt: skip
        """What one round of a :func:`bare` protocol takes from each trained tensor: the noised sums, times its unit."""
        model = self.model()
        trained = set(trained_names(model, protocol))
        self.train(protocol, cohort=cohort, indices=indices, randomness=randomness, model=model, features=features)
        return {
            name: np.asarray(self.weights[name], dtype=np.float64) - p.detach().cpu().double().numpy()
            for name, p in model.named_parameters() if name in trained
        }  # fmt: skip

    def cache(self, cohort: Films) -> FeatureCache:
        """Descriptors of a cohort, to be kept from round to round."""
        return FeatureCache(cohort, load_bytes=LOAD_BYTES)


def account_of(protocol: Protocol, rounds: int) -> Account:
    """What a woman of a site that took part in the first `rounds` rounds has been in."""
    account = Account()
    for sigma, rate, steps in protocol.mechanisms(rounds):
        account = account.add(noise_multiplier=sigma, sample_rate=rate, steps=steps)
    return account


def trained_names(model: FusionModel, protocol: Protocol) -> tuple[str, ...]:
    """Tensors that round 1 of a protocol trains, in the model's order."""
    phase = protocol.training.phase(1)
    names = set(model.trainable_parameters(phase.objective, phase.scope))
    if phase.encoder_rate == 0:
        names -= set(model.image_parameters() if phase.objective == "fusion" else model.encoder_parameters())
    return tuple(name for name, _ in model.named_parameters() if name in names)


def bare(
    protocol: Protocol, phase: PhaseTerms, *, site: str, steps: int, unit: float, sample_rate: float = 1.0,
    augmented: bool = False,
) -> Protocol:  # fmt: skip
    """The study's phase as one round of plain SGD, each step of which subtracts `unit` times the noised sum.

    Everything behind the noise is post-processing, and left away here so that a round's result can be read. With all
    women in every step (`sample_rate` 1) and without augmentation, a step is exact but for the noise.
    """
    batch = max(1.0, sample_rate * protocol.federation.site(site).patients)
    sigma = protocol.privacy.noise_multiplier * phase.noise_factor
    values = protocol.model_dump(mode="json")
    values["training"] |= {
        "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "decay": "constant", "proximal_mu": 0.0,
        "ema_decay": 0.0, "sample_rate": sample_rate, "steps_per_round": steps,
        "augmentation": values["training"]["augmentation"] | {"enabled": augmented},
        "phases": [{
            "name": phase.name, "rounds": 1, "objective": phase.objective, "scope": phase.scope,
            "learning_rate": unit * batch, "encoder_rate": 1.0 if phase.encoder_rate else 0.0, "noise_factor": 1.0,
        }],
    }  # fmt: skip
    values["privacy"]["noise_multiplier"] = sigma
    values["federation"] |= {"strategy": "fedavg", "byzantine": 0, "krum_select": 1}
    return Protocol.create(values)
