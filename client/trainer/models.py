"""Built models of one process, shared by all sites that it hosts; used by `site`.

A request brings all of a model's weights with it, so that a model keeps nothing of the site that used it last, and a
process that hosts a hundred sites needs one model of a shape and not a hundred.
"""

from __future__ import annotations

import torch

from shared_model.fusion import FusionConfig, FusionModel, build_model
from shared_model.protocol import Protocol

KEPT_MODELS = 2  # one study at a time, and a change-over

Shapes = dict[str, tuple[int, ...]]
Key = tuple[FusionConfig, float, torch.device]


class WarmModels:
    """At most `KEPT_MODELS` built models, by shape, prior and device; the oldest goes first.

    A model that was taken belongs to its taker for as long as it holds the process's compute lock, and to nobody after.
    """

    def __init__(self) -> None:
        self._built: dict[Key, tuple[FusionModel, Shapes]] = {}

    def __len__(self) -> int:
        return len(self._built)

    def take(self, protocol: Protocol, device: torch.device) -> tuple[FusionModel, Shapes]:
        """The protocol's model on `device`, with whatever weights it holds, and the shapes of its parameters by name.

        Raises:
            ConfigError: the protocol describes no model.
        """
        config = FusionConfig.of(protocol)
        key = (config, protocol.loss.prevalence, device)  # the prior is a constant of the model, not a weight
        if key not in self._built:
            model = build_model(config, seed=protocol.seed, prevalence=protocol.loss.prevalence).to(device)
            while len(self._built) >= KEPT_MODELS:
                self._built.pop(next(iter(self._built)))
            self._built[key] = model, {name: tuple(p.shape) for name, p in model.named_parameters()}
        return self._built[key]
