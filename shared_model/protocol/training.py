"""Protocol: what one site does in a round: loss, augmentation, phases, steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared_model.errors import ProtocolError
from shared_model.protocol.terms import Fraction, Name, NonNegative, Positive, Terms


class LossTerms(Terms):
    """Loss of one patient: a function of that patient and of public constants only (no batch statistics).

    prevalence: public share of positives in (0, 1), for the bias of the heads at initialisation.
    pos_weight: public weight of a positive, dimensionless; it acts only while clipping does not bind.
    auxiliary: weight of the image and clinical heads' own losses.
    """

    kind: Literal["bce", "focal"]
    prevalence: float = Field(gt=0, lt=1)
    pos_weight: Positive
    focal_gamma: NonNegative
    focal_alpha: Fraction
    auxiliary: NonNegative


class AugmentationTerms(Terms):
    """Augmentation inside one patient. Angles in degrees, shifts as a share of the image, probabilities in [0, 1]."""

    enabled: bool
    rotation_degrees: NonNegative
    shift: Fraction
    scale: Fraction
    vertical_flip: Fraction
    elastic: Fraction
    intensity: Fraction
    view_dropout: Fraction
    modality_dropout: Fraction
    feature_dropout: Fraction


class PhaseTerms(Terms):
    """Consecutive rounds with one objective: `image` trains the image branch alone, `clinical` that of the table,
    `fusion` everything.

    scope: what learns. `all`: every weight. `adapters`: of the view encoder the scales and shifts of its norms, and its
        pooling. `features`: nothing of it, so that every film is encoded once and the phase trains on the descriptors.
        `linear`: the image head and the straight way from the table to its logit only, a logistic regression.
    learning_rate: step of what is new in the phase. encoder_rate: factor on it for what comes trained into it, the view
        encoder in an image phase, the whole image branch in a fusion phase; 0 freezes that.
    noise_factor: the phase's noise as a multiple of `privacy.noise_multiplier`: its share of epsilon.
    sample_rate, steps_per_round: instead of the training's; None keeps them.

    A field that is absent means what it meant before there was such a field.
    """

    name: Name
    rounds: int = Field(ge=1, le=10_000)
    objective: Literal["image", "clinical", "fusion"]
    scope: Literal["linear", "features", "adapters", "all"] = "all"
    learning_rate: Positive
    encoder_rate: NonNegative
    noise_factor: Positive = 1.0
    sample_rate: float | None = Field(default=None, gt=0, le=1)
    steps_per_round: int | None = Field(default=None, ge=1, le=100_000)


class TrainingTerms(Terms):
    """What one site does in one round, the same at every site.

    engine: `loop` (one autograd pass a patient) or `opacus` (per-sample gradients by hooks) when privacy is on;
        without privacy the ordinary mini-batch path is used and `engine` says `batch`.
    sample_rate: q in (0, 1], the probability with which each patient enters a step (Poisson); without privacy the
        share of patients in a mini-batch.
    steps_per_round: optimiser steps T_r at each site in each round.
    gradient_clip: norm bound of a mini-batch gradient without privacy (0 turns it off).
    """

    engine: Literal["loop", "opacus", "batch"]
    optimizer: Literal["sgd", "adamw"]
    momentum: float = Field(ge=0, lt=1)
    weight_decay: NonNegative
    sample_rate: float = Field(gt=0, le=1)
    steps_per_round: int = Field(ge=1, le=100_000)
    decay: Literal["constant", "sqrt", "cosine"]
    gradient_clip: NonNegative
    proximal_mu: NonNegative
    ema_decay: float = Field(ge=0, lt=1)
    precision: Literal["fp32", "bf16"]
    oversampling: Literal["none", "positives", "smote"]
    phases: tuple[PhaseTerms, ...] = Field(min_length=1, max_length=16)
    augmentation: AugmentationTerms

    @property
    def rounds(self) -> int:
        """Rounds R of the study: the phases one after another."""
        return sum(phase.rounds for phase in self.phases)

    def phase(self, round_number: int) -> PhaseTerms:
        """The phase that round 1..R belongs to."""
        last = 0
        for phase in self.phases:
            last += phase.rounds
            if 1 <= round_number <= last:
                return phase
        raise ProtocolError("round outside the protocol", found=round_number, expected=f"1..{self.rounds}")
