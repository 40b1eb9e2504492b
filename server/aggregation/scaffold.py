"""SCAFFOLD's control variates, kept by the coordinator alone; for `strategies`.

Karimireddy et al. 2020, https://arxiv.org/abs/1910.06378, algorithm 1 with option II. Site i takes K steps
y <- y - eta (g_i(y) + c - c_i) from the round's weights x; then c_i <- c_i - c + (x - y_i) / (K eta), the mean of its
gradients g_i on the way. The paper keeps c_i at the site. Here the coordinator knows everything in that line, so it
keeps all c_i, and sends each site its correction c - c_i beside the weights: sites stay without state, a resumed study
has one place to restore, and c_i tells nothing that a site's updates did not tell. The site adds the correction to
gradients that are clipped and noised already: post-processing, which costs no privacy. But c_i holds the mean noise of
K steps, which comes back in the next round.

c is the mean of all c_i with the protocol's weights p_i (the paper's are equal): c = sum_i p_i c_i, where a site that
was never heard has c_i = 0. It needs no memory of its own.

A gradient is measured in units of the round's `learning_rate`: where a site steps `encoder_rate` times as far, c_i is
`encoder_rate` times the mean gradient, and the site divides (`client/training/update`). A tensor that a site sends back
to the bit as it came was not trained, and keeps its c_i. A new phase has another objective, hence other gradients: all
c_i start at 0 again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import ProtocolError, StorageError
from shared_model.messages import MAX_FRAME_BYTES, Arrays, weights_sha256
from shared_model.protocol import Protocol

PART = "c_i"
MAX_STATE_BYTES = 3 * MAX_FRAME_BYTES  # what a checkpoint can hold beside the weights (server/rounds/checkpoint)

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Correction:
    """c - c_i of one site, as it was sent. norm: L2 over all tensors, in units of a gradient."""

    tensors: Arrays
    sha256: str
    norm: float


class ControlVariates:
    """All c_i of a study. Its state is `c_i.<site>.<tensor>`, for sites that were heard in the phase."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        total = sum(site.weight for site in protocol.federation.sites)
        self._shares = {site.name: site.weight / total for site in protocol.federation.sites}
        self._own: dict[str, Weights] = {}

    def corrections(self, round_number: int, weights: Arrays, sites: Mapping[str, int]) -> dict[str, Correction]:
        """What each of `sites` is sent in a round that starts from `weights`.

        Raises:
            ProtocolError: a checkpoint could not hold a c_i of every site.
        """
        size = len(self._shares) * sum(array.nbytes for array in weights.values())
        if size > MAX_STATE_BYTES:
            raise ProtocolError("federation.strategy: scaffold keeps one more model for each site in every checkpoint",
                                found=f"{size} bytes", expected=f"at most {MAX_STATE_BYTES}",
                                remedy="choose a smaller model, fewer sites, or another strategy")  # fmt: skip
        known = self._known(round_number)
        mean = {name: self._mean(known, name, array) for name, array in weights.items()}
        return {site: _correction(mean, known.get(site, {})) for site in sites}

    def learn(
        self, round_number: int, before: Arrays, updates: Mapping[str, Arrays], sent: Mapping[str, Correction]
    ) -> None:
        """Take the new c_i of the sites that contributed to a round from `before`."""
        steps, rate = self._protocol.steps(round_number), self._protocol.learning_rate(round_number)
        self._own = dict(self._known(round_number))
        for site in sorted(updates):
            own, corrections = dict(self._own.get(site, {})), sent[site].tensors
            for name, array in updates[site].items():
                if np.array_equal(array, before[name]):
                    continue
                gone = before[name].astype(np.float64) - array.astype(np.float64)
                own[name] = np.asarray(gone / (steps * rate) - corrections[name], dtype=np.float32)
            self._own[site] = own

    def state(self) -> Weights:
        """See the class."""
        return {f"{PART}.{site}.{name}": array for site, own in self._own.items() for name, array in own.items()}

    def load_state(self, state: Arrays) -> None:
        """Take up the state of a checkpoint.

        Raises:
            StorageError: the state belongs to another strategy, or to sites of another study.
        """
        found: dict[str, Weights] = {}
        for key in sorted(state):
            part, _, rest = key.partition(".")
            site, _, name = rest.partition(".")
            if part != PART or site not in self._shares:
                raise StorageError("checkpoint holds the state of another strategy", found=key[:80],
                                   expected=f"{PART}.<site>.<tensor>")  # fmt: skip
            found.setdefault(site, {})[name] = np.asarray(state[key], dtype=np.float32)
        self._own = found

    def _known(self, round_number: int) -> Mapping[str, Weights]:
        """The c_i that hold in a round: none in the first round of a phase."""
        training = self._protocol.training
        first = round_number == 1 or training.phase(round_number) is not training.phase(round_number - 1)
        return {} if first else self._own

    def _mean(self, known: Mapping[str, Weights], name: str, like: NDArray[np.float32]) -> NDArray[np.float64]:
        total = np.zeros(like.shape, dtype=np.float64)
        for site in sorted(known):
            if name in known[site]:
                total = total + self._shares[site] * known[site][name].astype(np.float64)
        return total


def _correction(mean: Mapping[str, NDArray[np.float64]], own: Weights) -> Correction:
    tensors = {name: np.asarray(c - own[name] if name in own else c, dtype=np.float32) for name, c in mean.items()}
    norm = math.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in tensors.values()))
    return Correction(tensors=tensors, sha256=weights_sha256(tensors), norm=norm)
