"""Protocol: what is trained, on what and from what: contract, films, model, initial weights."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from shared_model.protocol.terms import Name, Positive, Sha256, Terms

BUILT_IN: Final = ("image", "clinical")  # modalities of every study: films and table


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
