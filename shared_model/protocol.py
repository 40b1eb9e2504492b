"""The study protocol: the frozen, declarative description of one federated training, hashed and checked field by field.

Written once by the coordinator, approved by each site, read by the server loop and by every trainer. It holds no code,
no path and no address: only numbers, names from closed lists, and hashes. What was approved is what runs, because every
request names the protocol's hash and a trainer serves only the protocols on its own disk.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from shared_model.errors import ProtocolError
from shared_model.strategies import (
    Personal,
    SecureSum,
    Strategy,
    personal_fault,
    robustness_fault,
    scaffold_fault,
    secure_sum_fault,
)

SCHEMA_VERSION: Final = 1
MAX_PROTOCOL_BYTES = 1 << 20  # a protocol of a hundred sites has some 30 KB

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


BUILT_IN: Final = ("image", "clinical")  # modalities of every study: films and table


class Terms(BaseModel):
    """Base of all protocol parts: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ContractTerms(Terms):
    """Which clinical data contract the sites prepared their tables by."""

    version: str = Field(max_length=32)
    sha256: Sha256
    n_features: int = Field(gt=0, le=4096)


class PipelineTerms(Terms):
    """Which imaging pipeline the sites prepared their films by; height and width in pixels, spacing in mm."""

    sha256: Sha256
    height: int = Field(ge=16, le=8192)
    width: int = Field(ge=16, le=8192)
    spacing_mm: Positive


class ModelTerms(Terms):
    """Shape of the fusion model.

    modalities: what it is made of; `image` and `clinical` first, then names of `shared_model.fusion.modalities`.
        Whether a machine has these shows when the model is built there. Not written where it is the two, so that
        earlier protocols keep their hash.
    """

    size: Literal["tiny", "small", "medium", "full"]
    fusion: Literal["gated", "early", "mid", "late"]
    modalities: tuple[Name, ...] = Field(default=BUILT_IN, min_length=2, max_length=8)

    @model_validator(mode="after")
    def _known(self) -> ModelTerms:
        if self.modalities[:2] != BUILT_IN or len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities: {', '.join(BUILT_IN)} first, then others, each once; "
                             f"found {', '.join(self.modalities)}")  # fmt: skip
        if self.others and self.fusion not in ("gated", "late"):
            raise ValueError(f"modalities: fusion {self.fusion} joins films and table only; use gated or late")
        return self

    @model_serializer(mode="wrap")
    def _without_the_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name != "modalities" or self.others}

    @property
    def others(self) -> tuple[str, ...]:
        """Modalities beside films and table."""
        return self.modalities[2:]


class WeightsTerms(Terms):
    """Initial weights, by hash. `origin` is `public` (pre-trained on procedural films), `random`, or `study`: a round
    of an earlier study, which hospitals have trained."""

    sha256: Sha256
    origin: Literal["public", "random", "study"]
    recipe: str = Field(max_length=200)


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


class PrivacyTerms(Terms):
    """The privacy promise, for each patient of each site, under add-or-remove-one adjacency.

    clip: C, greatest L2 norm of one patient's gradient; noise_multiplier: sigma, noise std divided by C.
    epsilon: what sigma was calibrated to over all rounds at this delta; a site that has less left abstains.
    metrics: what is released of the sites' own test women, once, at the end. `final`: each site's noised score
        histogram; `joint`: histograms by two models' scores at once (shared_model.evaluation.joint), for one figure of
        all sites together: exact out of a secure sum, or without one each site's with noise; `none`.
    metrics_noise_multiplier: noise std of each histogram count (one patient changes one count by one).
    """

    mode: Literal["patient", "none"]
    clip: Positive
    noise_multiplier: NonNegative
    epsilon: NonNegative
    delta: float = Field(gt=0, lt=1)
    accountant: Literal["prv"] = "prv"
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    unit: Literal["patient"] = "patient"
    metrics: Literal["final", "joint", "none"]
    metrics_noise_multiplier: NonNegative
    metrics_bins: int = Field(ge=4, le=256)


class SiteTerms(Terms):
    """One hospital as all parties know it. patients: *rounded*, public number of training patients."""

    name: Name
    patients: int = Field(ge=1)
    weight: Positive


class FederationTerms(Terms):
    """Who takes part and how updates become one model. deadline_s: seconds a round waits for replies.

    server_beta_1: momentum of fedavgm, first-moment decay of fedadam and fedyogi; server_beta_2: second-moment decay.
    byzantine: f, sites that may send anything without carrying the model away; above 0 for robust strategies only.
    krum_select: how many of the most central updates `krum` averages (more than 1: multi-Krum).
    personal: which tensors each site keeps a copy of its own of.
    secure_sum: `masked`: updates reach the coordinator as their sum only (`shared_model.secagg`); `none`: one by one.
    """

    strategy: Strategy
    server_learning_rate: Positive
    server_beta_1: float = Field(ge=0, lt=1)
    server_beta_2: float = Field(ge=0, lt=1)
    server_tau: Positive
    byzantine: int = Field(default=0, ge=0, le=500)
    krum_select: int = Field(default=1, ge=1, le=1000)
    personal: Personal = "none"
    secure_sum: SecureSum = "none"
    sites: tuple[SiteTerms, ...] = Field(min_length=1, max_length=1000)
    sites_per_round: int = Field(ge=1)
    quorum: int = Field(ge=1)
    deadline_s: Positive
    attempts: int = Field(ge=1, le=10)

    def site(self, name: str) -> SiteTerms:
        """The terms of one site by name."""
        for site in self.sites:
            if site.name == name:
                return site
        raise ProtocolError("site is not part of the study", found=name, expected=[s.name for s in self.sites])


class EvaluationTerms(Terms):
    """How the model is chosen and judged; stated before anything was trained.

    selection_rule: `best_selection_auc` (the round of the greatest AUC on `selection`, ties to the earlier) or `last`.
    score: which prediction the study is about, so that its AUC chooses the round: `fused`, or that of one branch in a
        study that trains nothing else.
    every: evaluate on `selection` after every n-th round (the last one always).
    specificity: level at which sensitivity is reported, threshold taken from `selection`.
    collapse_auc: alarm when the image branch's selection AUC falls below it after having been above.
    primary: the one comparison whose test is the study's; all others are adjusted for being many. prevalence: of cancer
        among the women to be screened, at which recalls and predictive values are stated. sensitivity: level at which
        two models' recalls are compared. None, as in protocols of earlier checkouts: not declared, and not in the hash.
    """

    selection_rule: Literal["best_selection_auc", "last"]
    score: Literal["fused", "image", "clinical"] = "fused"
    every: int = Field(ge=1)
    specificity: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    bootstrap: int = Field(ge=0, le=100_000)
    collapse_auc: Fraction
    primary: Literal["fused_vs_image", "fused_vs_clinical", "fused_vs_public"] | None = None
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    sensitivity: float | None = Field(default=None, gt=0, lt=1)

    @model_serializer(mode="wrap")
    def _without_undeclared(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was not declared is not written, so that earlier protocols keep their hash."""
        values: dict[str, Any] = handler(self)
        undeclared = {name for name in ("primary", "prevalence", "sensitivity") if values.get(name) is None}
        return {name: value for name, value in values.items() if name not in undeclared}


class ExplorationTerms(Terms):
    """Counts before a study, over all sites together: how many women, films and values there are; nobody is trained on.

    fields: names of the contract's; empty: all. bins: of a number. suppress_below: smaller counts are not shown.
    The rest of the protocol says who, by which contract, and how private: one round of one step on every woman, so that
    `privacy.noise_multiplier` is the noise of the whole vector of counts divided by its sensitivity, and the ledger and
    the policy reckon with it as with any round. Mode `none` is the exact sum.
    """

    fields: tuple[Name, ...] = Field(default=(), max_length=200)
    bins: int = Field(ge=2, le=64)
    suppress_below: int = Field(ge=0, le=1000)


class ReplacementTerms(Terms):
    """When this study's model may replace the one that it began from; stated before anything is trained.

    study, passport_sha256, model_sha256: of the released model. margin: of AUC, dimensionless; the new model is not
    inferior where the interval of its AUC minus the old one's, on the same women, lies above -margin. group_margin: the
    same at each site and in each subgroup. least_positives: a site or subgroup with fewer women with cancer is named
    and not judged. epsilon_before: of the patient who was exposed most by then; it is part of `privacy.epsilon`.
    """

    study: Name
    passport_sha256: Sha256
    model_sha256: Sha256
    margin: float = Field(gt=0, lt=0.5)
    group_margin: float = Field(gt=0, lt=0.5)
    least_positives: int = Field(ge=2)
    epsilon_before: NonNegative


class Protocol(Terms):
    """A whole study. Build it with :meth:`create`, read it with :meth:`from_json`; its hash is :attr:`sha256`."""

    schema_version: Literal[1] = SCHEMA_VERSION
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
        if self.replacement is not None and self.initial_weights.origin != "study":
            raise ValueError("replacement: of a study that begins from another's model, initial_weights.origin=study")
        if self.replacement is not None and self.replacement.model_sha256 != self.initial_weights.sha256:
            raise ValueError("replacement.model_sha256: not the hash of the initial weights")
        if self.private and self.replacement is not None and self.replacement.epsilon_before >= self.privacy.epsilon:
            raise ValueError("replacement.epsilon_before: nothing of privacy.epsilon is left for this study")
        names = [s.name for s in self.federation.sites]
        if len(set(names)) != len(names):
            raise ValueError(f"federation.sites: names must be unique, found {names}")
        if not self.federation.quorum <= self.federation.sites_per_round <= len(names):
            raise ValueError(
                f"federation: need quorum <= sites_per_round <= sites, found {self.federation.quorum}, "
                f"{self.federation.sites_per_round}, {len(names)}"
            )
        if fault := self._strategy_fault() or self._exploration_fault():
            raise ValueError(fault)
        if self.private:
            if self.privacy.noise_multiplier <= 0:
                raise ValueError("privacy.noise_multiplier: must be above 0 with privacy.mode=patient")
            if self.training.engine == "batch":
                raise ValueError("training.engine: `batch` mixes patients before clipping; use `loop` or `opacus`")
            if self.training.oversampling != "none":
                raise ValueError(
                    f"training.oversampling: `{self.training.oversampling}` is refused with privacy.mode=patient: a "
                    "repeated or interpolated patient is clipped several times, so one patient moves the sum by more "
                    "than C and the printed epsilon would be false; use `none`"
                )
        elif self.training.engine != "batch":
            raise ValueError("training.engine: without privacy the engine is `batch`")
        return self

    def _strategy_fault(self) -> str:
        """Why the strategy, or what stays at the sites, does not go with the rest; empty when it does."""
        terms, training = self.federation, self.training
        fault = robustness_fault(
            terms.strategy, byzantine=terms.byzantine, krum_select=terms.krum_select, quorum=terms.quorum
        )
        if fault:
            return f"federation.{fault}"
        if terms.strategy == "scaffold" and (
            fault := scaffold_fault(
                optimizer=training.optimizer, momentum=training.momentum, ema_decay=training.ema_decay,
                proximal_mu=training.proximal_mu, personal=terms.personal,
            )
        ):  # fmt: skip
            return fault
        if self.summed and (
            fault := secure_sum_fault(
                terms.strategy, weights=[site.weight for site in terms.sites], sites_per_round=terms.sites_per_round,
                quorum=terms.quorum,
            )
        ):  # fmt: skip
            return f"federation.{fault}"
        if self.privacy.metrics == "joint" and not self.summed and not self.private:
            return ("privacy.metrics: `joint` sums the sites' histograms securely, or noised: it needs "
                    "federation.secure_sum=masked or privacy.mode=patient")  # fmt: skip
        return personal_fault(personal=terms.personal, weight_decay=training.weight_decay)

    def _exploration_fault(self) -> str:
        """Why an exploration is none; empty when all is well."""
        if self.exploration is None:
            return ""
        if not self.summed:
            return "exploration: counts leave in a secure sum only; it needs federation.secure_sum=masked"
        if (self.rounds, self.steps(1), self.sample_rate(1)) != (1, 1, 1.0):
            return "exploration: every woman is counted once: one round of one step at a sample rate of 1"
        if self.privacy.metrics != "none":
            return "exploration: privacy.metrics: there is no model to measure, expected none"
        return ""

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
        return _canonical(self.model_dump(mode="json"))

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
        if len(data) > MAX_PROTOCOL_BYTES:
            raise ProtocolError(f"{source} is too large", found=len(data),
                                expected=f"at most {MAX_PROTOCOL_BYTES} bytes")  # fmt: skip
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"{source} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ProtocolError(f"{source} is not a JSON object", found=type(values).__name__)
        stated = None
        if set(values) == {"protocol", "sha256"}:
            stated, values = values["sha256"], values["protocol"]
        own = hashlib.sha256(_canonical(values)).hexdigest()
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
        return cls.from_json(_bytes_of(path), source=str(path))

    @classmethod
    def read_kept(cls, path: Path) -> tuple[Protocol, str]:
        """Read a protocol file only to look at it: the protocol, and the hash that it was frozen under.

        A file of an earlier version, which has fewer fields, is taken, too, where it is unchanged; its protocol has
        another :attr:`sha256` then. Never for what is approved or run: that is :meth:`read`.

        Raises:
            ProtocolError: as :meth:`read`, but for such a file.
        """
        return cls._kept(_bytes_of(path), str(path))


def _canonical(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_PROTOCOL_BYTES + 1)
    except OSError as error:
        raise ProtocolError(f"cannot read the protocol {path}: {error.strerror}") from None
