"""`localisation.json`: how well one model's heat maps point to known lesions, and the sentence beside every map.

Written by `mammofed simulate localise` and at the end of a simulated study, into the run directory; goes with the
model. Read by sites (beside each map), the study report and the passport. It is of one model, named by hash: where
there is none, nothing was measured, whatever is known of other models. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_model.errors import WeightsError
from shared_model.private_files import write_private
from shared_model.protocol import Fraction, Sha256

LOCALISATION: Final = "localisation.json"
MAX_BYTES: Final = 1 << 20
HALF: Final = 0.5  # the least that a default method's lower bound should reach
LEAST_WOMEN: Final = 10  # of a kind of lesion, for a figure of its own in the sentence
NOT_MEASURED: Final = (
    "It was not measured how well this model's maps point to lesions, and figures of other models do not hold for it."
)
UNSIGNED: Final = "These figures were measured after the model's passport was signed: nobody signed them."
NOT_HERE: Final = (
    f"Its passport names figures ({LOCALISATION}) of how well this model's maps point to lesions; they are not here."
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ShareFigure(_Part):
    """A share with the 95 % bounds of a bootstrap over women."""

    value: Fraction
    low: Fraction
    high: Fraction

    def __str__(self) -> str:
        return f"{self.value:.0%} ({self.low:.0%} to {self.high:.0%})"


class MapFigure(_Part):
    """One method on some films; see :class:`shared_model.explanation.Localisation`."""

    method: str = Field(max_length=64)
    women: int = Field(ge=1)
    films: int = Field(ge=1)
    tolerance_mm: float = Field(ge=0)
    pointing: ShareFigure
    inside: ShareFigure
    chance: Fraction
    energy: ShareFigure
    energy_chance: Fraction
    side: ShareFigure


class Randomised(_Part):
    """The same films explained after the view encoder's weights were drawn anew (Adebayo et al. 2018, arXiv
    1810.03292): maps that stay as they are do not depend on what was learnt. rank_correlation: Spearman's over the
    breast, mean over films, -1 to 1."""

    pointing: ShareFigure
    rank_correlation: float = Field(ge=-1, le=1)


class MethodFigure(MapFigure):
    """lesions: by kind. initial: of the weights that training began with, on the same films. cohort: who, in words."""

    cohort: str = Field(max_length=200)
    lesions: dict[str, MapFigure] = Field(default_factory=dict, max_length=16)
    initial: MapFigure | None = None
    randomised: Randomised | None = None


class EncoderFact(_Part):
    """moved: L2 norm of the change of the view encoder since the initial weights, as a share of theirs; 0: it is the
    initial one. private: it was trained under differential privacy."""

    moved: float = Field(ge=0)
    private: bool


class MapFigures(_Part):
    """The whole file. reason: why nothing was measured, where nothing was."""

    schema_version: Literal[1] = 1
    model_sha256: Sha256
    cohort: str = Field(max_length=200)
    encoder: EncoderFact | None = None
    methods: dict[str, MethodFigure] = Field(default_factory=dict, max_length=16)
    reason: str = Field(default="", max_length=300)

    def words(self, method: str) -> str:
        """What a map by this method is worth, in a sentence or three."""
        found = self.methods.get(method)
        return NOT_MEASURED if found is None else words_of(found)


def words_of(found: MethodFigure) -> str:
    """The sentence beside a map."""
    p = found.pointing
    text = (
        f"On {found.women} {found.cohort} with known lesions that the model never saw the strongest place of such a "
        f"map was within {found.tolerance_mm:.0f} mm of the lesion in {p.value:.0%} of films (95 % interval "
        f"{p.low:.0%}-{p.high:.0%}; chance {found.chance:.0%})."
    )
    kinds = [f"{kind} {row.pointing.value:.0%}" for kind, row in sorted(found.lesions.items(), reverse=True)
             if row.women >= LEAST_WOMEN]  # fmt: skip
    if len(kinds) > 1:
        text += f" By kind of lesion: {', '.join(kinds)}."
    if p.low < HALF:
        text += " So it is not shown to be right in at least half of films: look for yourself."
    return text


def write_reason(path: Path, *, model_sha256: str, cohort: str, reason: str) -> None:
    """Write why this model's maps were not measured."""
    write_map_figures(path, MapFigures(model_sha256=model_sha256, cohort=cohort, reason=reason))


def write_map_figures(path: Path, figures: MapFigures) -> None:
    """Write the file, whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    write_private(path, (figures.model_dump_json(indent=1) + "\n").encode())


def read_map_figures(path: Path, *, model_sha256: str, remedy: str) -> MapFigures | None:
    """The file of this model, None where there is none.

    Raises:
        WeightsError: damaged, or measured on another model. remedy: what the reader should do about damage.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", remedy=remedy) from None
    try:
        if len(data) > MAX_BYTES:
            raise WeightsError(f"{path} is too large", expected=f"at most {MAX_BYTES} bytes", remedy=remedy)
        figures = MapFigures.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise WeightsError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}",
                           remedy=remedy) from None  # fmt: skip
    if figures.model_sha256 != model_sha256:
        raise WeightsError(f"{path} was measured on another model", found=figures.model_sha256[:16],
                           expected=model_sha256[:16], remedy="measure again, or remove the file")  # fmt: skip
    return figures
