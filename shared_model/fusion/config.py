"""Sizes and settings of the fusion model; read by the model, the pre-training and the launcher. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from shared_model.errors import ConfigError

if TYPE_CHECKING:
    from shared_model.protocol import Protocol

Size = Literal["tiny", "small", "medium", "full"]
Fusion = Literal["gated", "early", "mid", "late"]
Objective = Literal["image", "clinical", "fusion"]
Scope = Literal["linear", "features", "adapters", "all"]

IMAGE_CHANNELS = 2  # in-mask percentile-normalised and in-mask histogram-equalised film
STEM_STRIDE = 2


@dataclass(frozen=True, kw_only=True)
class SizeSpec:
    """One row of the table of sizes.

    channels: of the stem and of each residual block after it.
    strides: of each block; with the stem's 2 they give the stride of the feature map. Films of at most 192 pixels keep
        8 and larger ones 16 or 32, because a heat map needs at least some 12 x 9 cells to point at a lesion.
    embedding: width D of the image and clinical tokens.
    height, width, spacing_mm: the film that the size is meant for, in pixels and mm.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    embedding: int
    attention: int
    hidden: int
    height: int
    width: int
    spacing_mm: float

    @property
    def stride(self) -> int:
        """Pixels of the film to one cell of the feature map."""
        stride = STEM_STRIDE
        for factor in self.strides:
            stride *= factor
        return stride


SIZES: Mapping[Size, SizeSpec] = {
    "tiny": SizeSpec(
        channels=(8, 16, 32, 64), strides=(2, 2, 1), embedding=64, attention=32, hidden=64,
        height=112, width=84, spacing_mm=1.75,
    ),
    "small": SizeSpec(
        channels=(16, 32, 64, 96), strides=(2, 2, 1), embedding=64, attention=32, hidden=64,
        height=128, width=96, spacing_mm=1.5,
    ),
    "medium": SizeSpec(
        channels=(32, 64, 128, 256, 384), strides=(2, 2, 2, 1), embedding=128, attention=64, hidden=128,
        height=512, width=256, spacing_mm=0.4,
    ),
    "full": SizeSpec(
        channels=(48, 96, 192, 384, 512), strides=(2, 2, 2, 2), embedding=256, attention=64, hidden=128,
        height=1024, width=512, spacing_mm=0.2,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """What fixes the model's shape: the same at every party of a study.

    size: row of :data:`SIZES`. fusion: how image and table are joined. n_clinical: F, encoded clinical features.
    height, width: of the prepared films in pixels. others: names of further modalities in the registry
        (`shared_model.fusion.modalities`); only `gated` and `late` can join them.

    Raises:
        ConfigError: an unknown name, no clinical feature, or films smaller than four cells of the feature map.
    """

    size: Size
    fusion: Fusion
    n_clinical: int
    height: int
    width: int
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.others and self.fusion not in ("gated", "late"):
            raise ConfigError(f"fusion {self.fusion} joins films and table only", found=", ".join(self.others),
                              expected="fusion gated or late for further modalities")  # fmt: skip
        for name, value, known in (("size", self.size, get_args(Size)), ("fusion", self.fusion, get_args(Fusion))):
            if value not in known:
                raise ConfigError(f"model.{name} is unknown", found=value, expected=list(known))
        if self.n_clinical < 1:
            raise ConfigError("model.n_clinical must be positive", found=self.n_clinical, expected="at least 1")
        least = 4 * self.spec.stride
        if min(self.height, self.width) < least:
            raise ConfigError(
                f"films are too small for model size {self.size}", found=f"{self.height} x {self.width}",
                expected=f"at least {least} pixels a side", remedy="choose a smaller model or larger films",
            )  # fmt: skip

    @classmethod
    def of(cls, protocol: Protocol) -> FusionConfig:
        """The shape that a study's protocol states."""
        return cls(
            size=protocol.model.size, fusion=protocol.model.fusion, n_clinical=protocol.contract.n_features,
            height=protocol.pipeline.height, width=protocol.pipeline.width, others=protocol.model.others,
        )  # fmt: skip

    @property
    def spec(self) -> SizeSpec:
        """The row of the table of sizes."""
        return SIZES[self.size]
