"""From a sum of gradients to new weights: noise first, then everything that is post-processing; called by `local`.

Order matters. Noise is added to the clipped sum before anything else sees it; FedProx, SCAFFOLD, weight decay, momentum
and EMA act on what is private already and cost nothing. FedProx inside the loss would be clipped away with the
patients' gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.privacy.randomness import Randomness
from client.training.engines import trainable
from shared_model.fusion import FusionModel
from shared_model.protocol import PhaseTerms, Protocol


def add_noise(sums: list[Tensor], *, std: float, randomness: Randomness) -> None:
    """Add N(0, std^2) to every number of every tensor, in place; `std` is sigma * C."""
    noise = randomness.normal(sum(t.numel() for t in sums), std=std, device=sums[0].device)
    for tensor, part in zip(sums, torch.split(noise, [t.numel() for t in sums]), strict=True):
        tensor.add_(part.view(tensor.shape))


def trained_names(model: FusionModel, protocol: Protocol, round_number: int) -> frozenset[str]:
    """Names of the parameters that the round's phase trains; the egress gate lets no other change leave."""
    phase = protocol.training.phase(round_number)
    wanted = frozenset(model.trainable_parameters(phase.objective, phase.scope))
    return wanted - _low_rate(model, phase) if phase.encoder_rate == 0 else wanted


def select_parameters(model: FusionModel, protocol: Protocol, round_number: int) -> None:
    """Switch gradients on for what the round's phase trains and off for the rest."""
    wanted = trained_names(model, protocol, round_number)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)


def _low_rate(model: FusionModel, phase: PhaseTerms) -> set[str]:
    """Names that learn at `encoder_rate`: in a fusion phase the whole image branch: its head is trained like it."""
    return set(model.image_parameters() if phase.objective == "fusion" else model.encoder_parameters())


class Update:
    """Optimiser of one round: fresh state each round, because a site keeps no state between rounds.

    Args:
        model: holds the global weights, which FedProx pulls back to and EMA starts from.
        correction: c - c_i of SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378) by parameter name, added to every
            gradient. In units of the round's learning rate: a parameter that steps `encoder_rate` times as far gets it
            divided by that, so that all move by `learning_rate` times the correction.
    """

    def __init__(
        self, model: FusionModel, protocol: Protocol, round_number: int, *,
        correction: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:  # fmt: skip
        terms = protocol.training
        self._parameters = trainable(model)
        self._start = [p.detach().clone() for p in self._parameters]
        self._mu, self._decay, self._steps = terms.proximal_mu, terms.ema_decay, 0
        self._average = [p.clone() for p in self._start] if terms.ema_decay else []
        self._optimizer = _optimizer(model, protocol, round_number)
        self._shift = _shift(model, protocol.training.phase(round_number), correction) if correction else []

    def step(self, gradients: list[Tensor]) -> None:
        """One step along `gradients` (aligned with `trainable`): already noised where privacy is on."""
        with torch.no_grad():
            if self._mu:  # FedProx (Li et al. 2020, arXiv:1812.06127): gradient of mu/2 |w - w_global|^2
                drift = torch._foreach_sub([p.detach() for p in self._parameters], self._start)
                torch._foreach_add_(gradients, drift, alpha=self._mu)
            if self._shift:
                torch._foreach_add_(gradients, self._shift)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._steps += 1
            if self._average:
                # Short rounds: the decay grows into its value, or the average would stay at the start.
                weight = min(self._decay, self._steps / (self._steps + 9.0))
                torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters], 1.0 - weight)

    def finish(self) -> None:
        """Put the moving average in place of the last iterate, where the protocol asks for one."""
        with torch.no_grad():
            for parameter, average in zip(self._parameters, self._average, strict=False):
                parameter.copy_(average)


def _shift(model: FusionModel, phase: PhaseTerms, correction: Mapping[str, NDArray[np.float32]]) -> list[Tensor]:
    """What SCAFFOLD adds to the gradients, aligned with `trainable`."""
    low = _low_rate(model, phase)
    return [
        torch.from_numpy(np.array(correction[name], dtype=np.float32)).to(p.device)
        / (phase.encoder_rate if name in low else 1.0)
        for name, p in model.named_parameters() if p.requires_grad
    ]  # fmt: skip


def _optimizer(model: FusionModel, protocol: Protocol, round_number: int) -> torch.optim.Optimizer:
    terms, phase = protocol.training, protocol.training.phase(round_number)
    rate = protocol.learning_rate(round_number)
    low = _low_rate(model, phase)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if name not in low], "lr": rate},
        {"params": [p for name, p in named if name in low], "lr": rate * phase.encoder_rate},
    ]
    groups = [group for group in groups if group["params"]]
    if terms.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=terms.momentum, weight_decay=terms.weight_decay)
    return torch.optim.AdamW(groups, lr=rate, betas=(terms.momentum, 0.999), weight_decay=terms.weight_decay)


def clip_by_norm(gradients: list[Tensor], *, bound: float) -> None:
    """Scale a whole mini-batch gradient to norm `bound` at most, in place (no privacy; 0 leaves it as it is)."""
    if bound and gradients:
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        if norm > bound:
            torch._foreach_mul_(gradients, bound / norm)
