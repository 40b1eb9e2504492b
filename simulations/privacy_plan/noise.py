"""How much noise a study's model carries: one number that foretells what privacy costs, whatever made it up.

A step of FedAvg over K sites moves the weights by noise of standard deviation lr sigma C sqrt(sum (w_k / (q n_k))^2)
in every coordinate; T steps by sqrt(T) times that. The learning rate and C are the recipe's and act on signal and noise
alike, so what is left is the index. Sites are weighted by their sizes, w_k = n_k / N, so that it is sigma sqrt(K T) /
(q N) for K sites of N women together. Studies of other sizes, budgets and lengths with the same index lose about the
same AUC (`measured` says how nearly).
"""

from __future__ import annotations

import math

from shared_model.protocol import Protocol


def noise_index(protocol: Protocol) -> float:
    """The index of a whole study; phases add up as variances.

    Of 192 steps at four sites of 400 women, sigma 2 and q 1/8:

    >>> round(index_of(sigma=2.0, sample_rate=0.125, steps=192, sizes=[400.0] * 4), 4)
    0.2771
    """
    sizes = [float(site.patients) for site in protocol.federation.sites]
    return math.sqrt(sum(
        index_of(sigma=sigma, sample_rate=rate, steps=steps, sizes=sizes) ** 2
        for sigma, rate, steps in protocol.mechanisms(protocol.rounds)
    ))  # fmt: skip


def index_of(*, sigma: float, sample_rate: float, steps: int, sizes: list[float]) -> float:
    """The index of one mechanism, sites weighted by their sizes."""
    total = sum(sizes)
    # w_k / (q n_k) = 1 / (q N) for each of them: sizes cancel, their number remains.
    return sigma * math.sqrt(len(sizes) * steps) / (sample_rate * total)
