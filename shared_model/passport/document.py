"""What a model passport says, field by field; made by `server.reporting.passport`, read by whoever was handed a model.

A passport is one JSON file beside a study's weights. It holds no patient: sizes are the protocol's rounded ones, groups
too small to show are named without figures, and what a site measured of its own women is what that site released.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from shared_model.audit.heads import SignedHead
from shared_model.protocol import Fraction, Name, Sha256

SCHEMA_VERSION: Final = 1
PASSPORT, SBOM = "passport.json", "sbom.cdx.json"
MAX_SITES, MAX_GROUPS = 1000, 2000

Line = Annotated[str, Field(max_length=300)]
Text = Annotated[str, Field(max_length=1000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Outcome = Literal["contributed", "abstained", "refused", "late", "failed", "not_sampled"]


class Part(BaseModel):
    """Base of all parts: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelPart(Part):
    """The weights. sha256: of the tensors (`messages.weights_sha256`), as protocols and journals name them.

    round: whose weights they are, chosen by `rule`. thresholds: on logits, by score (`score > threshold` is positive),
    and temperature of the fused logit, both from `selection`; absent where the study never measured it. origin, recipe,
    initial_sha256: what training began from.
    """

    size: Line
    fusion: Line
    sha256: Sha256
    parameters: Count
    round: Count
    rule: Line
    thresholds: dict[str, Number] = Field(max_length=16)
    specificity: Fraction
    temperature: float | None = Field(gt=0, allow_inf_nan=False)
    origin: Line
    recipe: Line
    initial_sha256: Sha256


class DataPart(Part):
    """What the women are and how their data were prepared. height, width: pixels; spacing: mm. kind: of the cohort as
    the launch named it (`synthetic`, ...), empty where nobody said; words: what such data can show."""

    kind: Line
    words: Text
    contract_version: Line
    contract_sha256: Sha256
    n_features: Count
    pipeline_sha256: Sha256
    height: Count
    width: Count
    spacing_mm: Number


class Span(Part):
    """The same outcome in rounds `first` to `last`."""

    outcome: Outcome
    first: int = Field(ge=1)
    last: int = Field(ge=1)


class SitePart(Part):
    """One hospital. patients: rounded, public. rounds: outcomes by closed round, as spans in order."""

    name: Name
    patients: Count
    rounds: tuple[Span, ...] = Field(max_length=10_000)


class SpentPart(Part):
    """What a site's patients were exposed to, as its own accountant said last.

    epsilon: of training patients, None where the site never answered; at the passport's delta, and at those of
    `at_other_deltas`. metrics_epsilon: of the site's own test women, who train nothing. unheard: an answer was lost, so
    the site may have spent more than it could say, at most `budget`.
    """

    site: Name
    epsilon: float | None = Field(ge=0)
    budget: Number
    steps: Count | None
    metrics_epsilon: float | None = Field(default=None, ge=0)
    at_other_deltas: dict[str, Number] = Field(default_factory=dict, max_length=16)
    unheard: bool = False


class PrivacyPart(Part):
    """mode `none`: no patient is protected beyond her data staying at home; then `sites` is empty.

    unit, adjacency, accountant: what epsilon means. planned_epsilon: what the noise was calibrated to. clip: L2 norm.
    """

    mode: Literal["patient", "none"]
    unit: Line
    adjacency: Line
    accountant: Line
    delta: float = Field(gt=0, lt=1)
    planned_epsilon: Number
    clip: Number
    noise_multiplier: Number
    sites: tuple[SpentPart, ...] = Field(max_length=MAX_SITES)


class Score(Part):
    """How one model did on `n` women. auc with bounds by DeLong at the passport's confidence; sensitivity and realised
    specificity at the threshold from `selection`. None: these women do not determine it; of n, positives: too few, or
    not said."""

    n: Number | None
    positives: Number | None
    auc: Fraction | None
    auc_low: Fraction | None
    auc_high: Fraction | None
    sensitivity: Fraction | None = None
    sensitivity_low: Fraction | None = None
    sensitivity_high: Fraction | None = None
    specificity: Fraction | None = None
    specificity_low: Fraction | None = None
    specificity_high: Fraction | None = None
    brier: Fraction | None = None
    calibration_slope: Number | None = None
    calibration_intercept: Number | None = None


class Difference(Part):
    """Difference of two AUCs on the same women (paired DeLong)."""

    name: Line
    difference: Number | None
    low: Number | None
    high: Number | None
    p: Fraction | None


class Group(Part):
    """The fused model in one subgroup; score None: too few women to show."""

    name: Line
    level: Line
    score: Score | None


class JointPart(Part):
    """The fused model and its rivals on all hospitals' own test women together, from joint histograms: no score moved.

    how `masked`: counts exact, out of a secure sum, and no epsilon covers them; `noised`: each hospital's own counts
    with noise of its ledger's account, and intervals widened for it. sites: hospitals in it. noise_std: of each count
    of the sum. epsilon: the greatest that a hospital's test women were charged, None where masked. n, positives:
    rounded to tens, as hospitals' sizes are. models, pairs: AUC and its paired differences, for binned scores.
    withheld: why there are no figures, empty where there are.
    """

    how: Literal["masked", "noised"]
    sites: Count
    bins: Count
    noise_std: float | None = Field(ge=0, allow_inf_nan=False)
    epsilon: float | None = Field(ge=0, allow_inf_nan=False)
    n: Count | None
    positives: Count | None
    models: dict[str, Score] = Field(max_length=8)
    pairs: tuple[Difference, ...] = Field(max_length=8)
    withheld: Line


class MetricsPart(Part):
    """test: by model, on held-out women, opened once. sites: as each released it, with DP noise where there is privacy,
    so that even counts are not whole numbers. joint: of all hospitals' own women together, None where not counted."""

    confidence: float = Field(gt=0, lt=1)
    test: dict[str, Score] = Field(max_length=16)
    comparisons: tuple[Difference, ...] = Field(max_length=64)
    groups: tuple[Group, ...] = Field(max_length=MAX_GROUPS)
    sites: dict[Name, Score] = Field(max_length=MAX_SITES)
    joint: JointPart | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_unused(plain(self), "joint")


class FilePart(Part):
    """A file beside the passport, by the SHA-256 of its bytes. needed: a passport without it vouches for nothing."""

    name: FileName
    sha256: Sha256
    bytes: Count
    needed: bool


class SoftwarePart(Part):
    """What computed. code_sha256: of all files of this project's packages. versions: as the journal has them."""

    release: Line
    code_sha256: Sha256
    versions: dict[str, Line] = Field(max_length=64)
    components: Count


class RecordPart(Part):
    """Where the study is on record. journal_sha256: of all seals of the journal; head: how far the coordinator's audit
    log reached when the passport was made, None on one machine, where there is no such log."""

    journal_sha256: Sha256 | None
    head: SignedHead | None


def former_name(sha256: str) -> str:
    """The file of a passport that was replaced, beside the one that replaces it."""
    return f"passport-{sha256[:16]}.json"


class Passport(Part):
    """A whole passport. status: COMPLETE, or why a person should not use the model. made: UTC. replaces: SHA-256 of the
    passports of this model that were signed before it, the latest first: it was signed again when its heat maps had
    been measured."""

    schema_version: Literal[1] = SCHEMA_VERSION
    study: Name
    protocol_sha256: Sha256
    status: Literal["COMPLETE", "INCOMPLETE", "STOPPED"]
    made: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    rounds_planned: Count
    rounds_closed: Count
    model: ModelPart
    data: DataPart
    sites: tuple[SitePart, ...] = Field(max_length=MAX_SITES)
    privacy: PrivacyPart
    metrics: MetricsPart
    limits: tuple[Text, ...] = Field(max_length=64)
    files: tuple[FilePart, ...] = Field(min_length=1, max_length=64)
    software: SoftwarePart
    record: RecordPart
    replaces: tuple[Sha256, ...] = Field(default=(), max_length=64)

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_unused(plain(self), "replaces")

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return self.model_dump(mode="json")


def _without_unused(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """Fields that passports of earlier releases do not have are left out where they say nothing: a passport has one
    form only, and theirs would be found changed."""
    return {name: value for name, value in values.items() if name not in names or value}
