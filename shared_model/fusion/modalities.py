"""The registry of further modalities: ultrasound or MRI plug into the fusion here; used by the fusion model.

A modality is an encoder (values [B, ...] -> token [B, D]), its token and a mask. Films and table are built in, because
their branches are trained, protected and judged by themselves; any other is one token more for the gate. A package that
is installed beside this one at every party brings it, and a protocol that names it uses it:

    [project.entry-points."mammofed.modalities"]             # pyproject.toml of that package
    ultrasound = "our_ultrasound:ULTRASOUND"                 # a Modality

    ULTRASOUND = Modality(build=lambda config: UltrasoundEncoder(config.spec.embedding), shape=(6,))
    model: {modalities: [image, clinical, ultrasound]}       # of the protocol
    shared_model.cohort.others.write_other(...)              # what a site has of it, beside its cohort

Nothing is loaded that no protocol names. Gradient engines, augmentation and the loop carry `others` along and know
nothing of them. Encoders must treat each patient alone (no BatchNorm): `client.training.checks` refuses others before
anything is trained. See `shared_model/MODALITIES.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

import torch
from torch import Tensor, nn

from shared_model.cohort.batch import OtherInput
from shared_model.errors import ConfigError
from shared_model.fusion.config import FusionConfig
from shared_model.fusion.joints import OtherEvidence
from shared_model.protocol import BUILT_IN

GROUP = "mammofed.modalities"  # of entry points
Build = Callable[[FusionConfig], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Modality:
    """build: config -> module that makes [B, D] of a modality's values; called inside `build_model`, on the meta
    device, so that its weights are initialised like all others (Linear, Conv2d, norms, Embedding). shape: of one
    patient's values, the same at every site."""

    build: Build
    shape: tuple[int, ...]


_REGISTRY: dict[str, Modality] = {}


def register(name: str, modality: Modality) -> None:
    """Add a modality in this process; installed packages are found by themselves.

    Raises:
        ConfigError: the name is taken.
    """
    if name in BUILT_IN or name in _REGISTRY:
        raise ConfigError("a modality of that name is there already", found=name,
                          expected=f"none of {', '.join((*BUILT_IN, *_REGISTRY))}")  # fmt: skip
    _REGISTRY[name] = modality


def forget(name: str) -> None:
    """Take a modality out again; models that were built keep it."""
    _REGISTRY.pop(name, None)


def registered() -> tuple[str, ...]:
    """Names of all that a protocol may name on this machine."""
    return (*BUILT_IN, *sorted({*_REGISTRY, *(entry.name for entry in entry_points(group=GROUP))}))


def find(name: str) -> Modality:
    """The modality of that name; a package that brings it is imported now.

    Raises:
        ConfigError: there is none or more than one, it cannot be loaded, or it is no :class:`Modality`.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    offered = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if len(offered) > 1:  # which one is loaded would depend on the order of a path
        raise ConfigError(f"more than one installed package brings the modality {name}", found=sorted(offered),
                          expected="one", remedy="remove the other package from this environment")  # fmt: skip
    found = next(iter(offered.values()), None)
    if found is None:
        raise ConfigError("no such modality is registered", found=name, expected=", ".join(registered()),
                          remedy="install the package that brings it, at every party of the study")  # fmt: skip
    try:
        modality = found.load()
    except Exception as error:  # another package's code
        raise ConfigError(f"the modality {name} cannot be loaded: {type(error).__name__}", found=found.value,
                          remedy="mend the package that brings it") from None  # fmt: skip
    if not isinstance(modality, Modality):
        raise ConfigError(f"the modality {name} is none", found=type(modality).__name__, expected="a Modality")
    _REGISTRY[name] = modality
    return modality


class OtherBranch(nn.Module):
    """A registered encoder and the head that makes log odds of its token; the head starts at zero, so that a model
    begins with what it knew without the modality.

    Raises:
        ConfigError: no such modality is registered.
    """

    def __init__(self, name: str, config: FusionConfig) -> None:
        super().__init__()
        modality = find(name)
        self.name, self.shape, self.width = name, modality.shape, config.spec.embedding
        self.encoder = modality.build(config)
        self.other_head = nn.Linear(config.spec.embedding, 1)

    def forward(self, count: int, given: OtherInput | None) -> OtherEvidence:
        """Token, evidence and presence of `count` patients; nothing is given where nobody in the batch has it.

        Raises:
            ConfigError: values of another shape than the modality's.
        """
        if given is None:
            like: Tensor = self.other_head.weight
            return OtherEvidence(like.new_zeros(count, self.width), like.new_zeros(count),
                                 torch.zeros(count, dtype=torch.bool, device=like.device))  # fmt: skip
        if tuple(given.values.shape[1:]) != self.shape:
            raise ConfigError(f"values of {self.name} have another shape than the modality's",
                              found=tuple(given.values.shape[1:]), expected=self.shape)  # fmt: skip
        present = given.mask_B.to(given.values.dtype)
        token_BD = self.encoder(given.values) * present.unsqueeze(1)
        return OtherEvidence(token_BD, self.other_head(token_BD).squeeze(1) * present, given.mask_B)
