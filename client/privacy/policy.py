"""What a hospital allows, whoever asks: its limits, and what they make of a protocol; for trainer, review and doctor.

The server may ask for less privacy than this. Where more protection can be given without anybody's help it is: noise is
raised and the clip lowered, and the ledger is charged for what was done. Everything else that goes beyond a limit is
refused. :func:`decide` does no I/O, so that every case stands in a table of tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared_model.clamp import MOST_RAISE
from shared_model.errors import PrivacyError
from shared_model.protocol import PhaseTerms, Protocol

LEAST_IN_A_SUM: Final = 3  # of two, each knows the other's part
MAX_REASON = 300  # characters of a reply's reason


class PrivacyPolicy(BaseModel):
    """A site's limits. `description` of each field is the comment in policy.yaml and what `site policy` says.

    Defaults are for programs that name no line (a simulator); policy.yaml must name every one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Strict: "no" in quotes is no `false`, and `yes` is no epsilon of 1.
    private_only: Annotated[bool, Field(
        strict=True, description="true: refuse every study that trains without differential privacy")] = True
    epsilon_limit: Annotated[float, Field(strict=True, ge=0)] | None = Field(
        default=None, description="most epsilon for each patient over all studies; then the site abstains")
    delta_limit: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = Field(
        default=None, description="refuse a study with a greater delta")
    least_noise: Annotated[float, Field(strict=True, ge=0, le=1000, description=(
        "noise std / clip of a step; a study that asks for less gets this (refused: less than a quarter of it)"))] = 0.2
    greatest_clip: Annotated[float, Field(strict=True, gt=0, description=(
        "norm of one patient's gradient; a study that asks for more gets this"))] = 100.0
    greatest_sample_rate: Annotated[float, Field(strict=True, gt=0, le=1, description=(
        "refuse a study in which a patient enters a step more often than this"))] = 1.0
    most_rounds: Annotated[int, Field(strict=True, ge=1, description="refuse a study of more rounds")] = 1000
    least_cohort: Annotated[int, Field(strict=True, ge=1, description=(
        "refuse to train on fewer women than this"))] = 1
    secure_sum: Annotated[Literal["required", "allowed"], Field(description=(
        "required: refuse a study whose coordinator sees this site's update by itself"))] = "allowed"
    least_sites: Annotated[int, Field(strict=True, ge=LEAST_IN_A_SUM, description=(
        "refuse a secure sum that fewer sites can close (at least 3)"))] = LEAST_IN_A_SUM
    suppress_below: Annotated[int, Field(strict=True, ge=0, description=(
        "counts of women below this never leave (disclosure control, it is no epsilon)"))] = 5
    metrics: Annotated[Literal["none", "final"], Field(description=(
        "none: no score histogram of this site's own test women leaves, whatever a study asks"))] = "final"

    @property
    def limits(self) -> dict[str, Any]:
        """These lines alone, of whatever else has them."""
        return {name: getattr(self, name) for name in PrivacyPolicy.model_fields}

    @property
    def policy(self) -> PrivacyPolicy:
        """The limits alone, of a site's configuration or its policy file."""
        return PrivacyPolicy(**self.limits)


LINES: Final = tuple(PrivacyPolicy.model_fields)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a study is refused. line: of the policy. problem, found, expected, remedy: as in the errors."""

    line: str
    problem: str
    found: object
    expected: object
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem} (`{self.line}` of this site's policy): {self.found}, not {self.expected}"


@dataclass(frozen=True, kw_only=True)
class Clamp:
    """What the site does otherwise than it is asked, in the patients' favour. line: of the policy."""

    line: str
    asked: float | str
    used: float | str

    def __str__(self) -> str:
        return f"{self.line}: {_plain(self.used)} instead of {_plain(self.asked)}"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a policy makes of one protocol.

    refusals: nothing is trained when there is one. clamps: what is done otherwise. clip: C as it is used.
    noise: sigma of each phase as it is used. metrics: whether a histogram of this site alone may leave;
    metrics_noise: its noise.
    """

    refusals: tuple[Refusal, ...] = ()
    clamps: tuple[Clamp, ...] = ()
    clip: float
    noise: tuple[float, ...]
    metrics: bool
    metrics_noise: float

    def check(self, site: str) -> None:
        """Stop where anything is refused.

        Raises:
            PrivacyError: all refusals in words.
        """
        if self.refusals:
            first, rest = self.refusals[0], [str(refusal) for refusal in self.refusals[1:]]
            raise PrivacyError("; ".join([f"{site} refuses the study: {first.problem} (`{first.line}`)", *rest]),
                               found=first.found, expected=first.expected, remedy=first.remedy)  # fmt: skip

    def apply(self, protocol: Protocol) -> Protocol:
        """The protocol as this site carries it out: for training, accounting and prediction, never for its hash."""
        if not any(clamp.line in ("least_noise", "greatest_clip") for clamp in self.clamps):
            return protocol
        # Sigma of a phase is a product; with a first factor of 1 it is the clamped number to the last bit.
        phases = tuple(phase.model_copy(update={"noise_factor": sigma})
                       for phase, sigma in zip(protocol.training.phases, self.noise, strict=True))  # fmt: skip
        return protocol.model_copy(update={
            "training": protocol.training.model_copy(update={"phases": phases}),
            "privacy": protocol.privacy.model_copy(update={"clip": self.clip, "noise_multiplier": 1.0}),
        })  # fmt: skip

    @property
    def reason(self) -> str:
        """The clamps of the training for a reply's reason; empty when it is as it was asked."""
        changed = [str(clamp) for clamp in self.clamps if clamp.line in ("least_noise", "greatest_clip")]
        return f"this site's policy: {'; '.join(changed)}"[:MAX_REASON] if changed else ""


def decide(policy: PrivacyPolicy, protocol: Protocol, patients: int) -> Decision:
    """Hold a protocol against a policy.

    A limit on epsilon is no refusal here: the ledger keeps it, and the site abstains once it is used up.

    Args:
        patients: women whom the site would train on.
    """
    refusals = [*_refused_by_kind(policy, protocol), *_refused_by_size(policy, protocol, patients),
                *_refused_by_sum(policy, protocol)]  # fmt: skip
    clamps: list[Clamp] = []
    terms, asked = protocol.privacy, [_sigma(protocol, phase) for phase in protocol.training.phases]
    clip, noise = terms.clip, list(asked)
    if protocol.private:
        refusals += _refused_by_noise(policy, protocol, asked)
        noise = [max(sigma, policy.least_noise) for sigma in asked]
        if noise != asked:
            clamps.append(Clamp(line="least_noise", asked=min(asked), used=policy.least_noise))
        if not clip <= policy.greatest_clip:
            clip = policy.greatest_clip
            clamps.append(Clamp(line="greatest_clip", asked=terms.clip, used=clip))
    if terms.metrics != "none" and policy.metrics == "none":
        clamps.append(Clamp(line="metrics", asked=terms.metrics, used="none"))
    metrics = protocol.metrics_alone and policy.metrics == "final"
    metrics_noise = max(terms.metrics_noise_multiplier, policy.least_noise) if protocol.private else 0.0
    return Decision(refusals=tuple(refusals), clamps=tuple(clamps), clip=clip, noise=tuple(noise), metrics=metrics,
                    metrics_noise=metrics_noise)  # fmt: skip


def _sigma(protocol: Protocol, phase: PhaseTerms) -> float:
    return protocol.privacy.noise_multiplier * phase.noise_factor


def _refused_by_kind(policy: PrivacyPolicy, protocol: Protocol) -> Sequence[Refusal]:
    terms, found = protocol.privacy, []
    if not protocol.private and (policy.private_only or terms.mode != "none"):
        found.append(Refusal(line="private_only", problem="it trains without differential privacy",
                             found="a protocol without", expected="privacy for each patient",
                             remedy="ask the coordinator for a private protocol"))  # fmt: skip
    if protocol.private and policy.delta_limit is not None and not terms.delta <= policy.delta_limit:
        found.append(Refusal(line="delta_limit", problem="its delta is greater than this site allows",
                             found=f"{terms.delta:g}", expected=f"at most {policy.delta_limit:g}",
                             remedy="ask the coordinator for a smaller delta"))  # fmt: skip
    return found


def _refused_by_size(policy: PrivacyPolicy, protocol: Protocol, patients: int) -> Sequence[Refusal]:
    found, training = [], protocol.training
    rate = max(phase.sample_rate or training.sample_rate for phase in training.phases)
    # An exploration counts every woman once; what that costs is in the noise and in the ledger.
    if protocol.private and protocol.exploration is None and not rate <= policy.greatest_sample_rate:
        found.append(Refusal(line="greatest_sample_rate", problem="each patient would enter too many steps",
                             found=f"{rate:g}", expected=f"at most {policy.greatest_sample_rate:g}",
                             remedy="ask the coordinator for a lower sampling rate"))  # fmt: skip
    if not protocol.rounds <= policy.most_rounds:
        found.append(Refusal(line="most_rounds", problem="it has too many rounds", found=protocol.rounds,
                             expected=f"at most {policy.most_rounds}",
                             remedy="ask the coordinator for a shorter study"))  # fmt: skip
    if not patients >= policy.least_cohort:
        found.append(Refusal(line="least_cohort", problem="too few women of this site would be trained on",
                             found=f"fewer than {policy.least_cohort}", expected=f"at least {policy.least_cohort}",
                             remedy="prepare more patients, or sit the study out"))  # fmt: skip
    return found


def _refused_by_sum(policy: PrivacyPolicy, protocol: Protocol) -> Sequence[Refusal]:
    kind, quorum = str(getattr(protocol.federation, "secure_sum", "none")), protocol.federation.quorum
    if kind == "none":
        if policy.secure_sum != "required":
            return []
        return [Refusal(line="secure_sum", problem="the coordinator would see this site's update by itself",
                        found="no secure sum", expected="a secure sum",
                        remedy="ask the coordinator for a protocol with secure_sum"),
                ]  # fmt: skip
    if kind != "masked":  # of a later release: nobody here knows what it hides
        return [Refusal(line="secure_sum", problem="it sums updates in a way that is not known here", found=kind,
                        expected="none or masked", remedy="install the protocol's release at the site")]  # fmt: skip
    fewest = max(quorum, LEAST_IN_A_SUM)
    if fewest < policy.least_sites:
        return [Refusal(line="least_sites", problem="too few sites can close a secure sum", found=fewest,
                        expected=f"at least {policy.least_sites}",
                        remedy="ask the coordinator for a greater quorum")]  # fmt: skip
    return []


def _refused_by_noise(policy: PrivacyPolicy, protocol: Protocol, asked: Sequence[float]) -> Sequence[Refusal]:
    least, clip, found = min(asked), protocol.privacy.clip, []
    if not (math.isfinite(clip) and clip > 0):
        found.append(Refusal(line="greatest_clip", problem="it bounds no patient's gradient", found=clip,
                             expected="a number above 0",
                             remedy="ask the coordinator for another protocol"))  # fmt: skip
    if not least * MOST_RAISE >= policy.least_noise or not least > 0:
        found.append(Refusal(line="least_noise", problem="its noise is too small to be raised to what this site adds",
                             found=f"{least:g}", expected=f"at least {policy.least_noise / MOST_RAISE:g}",
                             remedy="ask the coordinator for more noise, or for a smaller epsilon"))  # fmt: skip
    return found


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
