"""The registry of further modalities: ultrasound or MRI plug into the fusion here; used by the fusion model.

A modality is an encoder (values [B, ...] -> token [B, D]), its token and a mask. Films and table are built in, because
their branches are trained, protected and judged by themselves; any other is one token more for the gate:

    register("ultrasound", lambda config: UltrasoundEncoder(config.spec.embedding))
    FusionConfig(..., others=("ultrasound",))            # the model
    replace(batch, others={"ultrasound": OtherInput(values, mask_B)})   # what a cohort hands out

Gradient engines, augmentation and the loop carry `others` along and know nothing of them. Encoders must treat each
patient alone (no BatchNorm): `client.training.checks` refuses others before anything is trained. A study needs two
things besides: the protocol has to name the modality, and the cohort has to store it; both come with the first real
one, because its format decides them. Missing-not-at-random: ultrasound exists mostly of suspicious women, so that the
mask alone tells the outcome; whoever adds it has to show that the model does not live on it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared_model.cohort.batch import OtherInput
from shared_model.errors import ConfigError
from shared_model.fusion.config import FusionConfig
from shared_model.fusion.joints import OtherEvidence

Build = Callable[[FusionConfig], nn.Module]
BUILT_IN = ("image", "clinical")
_REGISTRY: dict[str, Build] = {}


def register(name: str, build: Build) -> None:
    """Add a modality. build: config -> module that makes [B, D] of a modality's values; called inside `build_model`, on
    the meta device, so that its weights are initialised like all others (Linear, Conv2d, norms, Embedding).

    Raises:
        ConfigError: the name is taken.
    """
    if name in BUILT_IN or name in _REGISTRY:
        raise ConfigError("a modality of that name is there already", found=name,
                          expected=f"none of {', '.join((*BUILT_IN, *_REGISTRY))}")  # fmt: skip
    _REGISTRY[name] = build


def forget(name: str) -> None:
    """Take a modality out again; models that were built keep it."""
    _REGISTRY.pop(name, None)


class OtherBranch(nn.Module):
    """A registered encoder and the head that makes log odds of its token; the head starts at zero, so that a model
    begins with what it knew without the modality.

    Raises:
        ConfigError: no such modality is registered.
    """

    def __init__(self, name: str, config: FusionConfig) -> None:
        super().__init__()
        if name not in _REGISTRY:
            raise ConfigError("no such modality is registered", found=name,
                              expected=", ".join(_REGISTRY) or "none is")  # fmt: skip
        self.width = config.spec.embedding
        self.encoder = _REGISTRY[name](config)
        self.other_head = nn.Linear(config.spec.embedding, 1)

    def forward(self, count: int, given: OtherInput | None) -> OtherEvidence:
        """Token, evidence and presence of `count` patients; nothing is given where nobody in the batch has it."""
        if given is None:
            like: Tensor = self.other_head.weight
            return OtherEvidence(like.new_zeros(count, self.width), like.new_zeros(count),
                                 torch.zeros(count, dtype=torch.bool, device=like.device))  # fmt: skip
        present = given.mask_B.to(given.values.dtype)
        token_BD = self.encoder(given.values) * present.unsqueeze(1)
        return OtherEvidence(token_BD, self.other_head(token_BD).squeeze(1) * present, given.mask_B)
