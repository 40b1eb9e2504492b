"""Counts of a site's own test women with noise, charged before the noise is drawn; called by `evaluate` and `joint`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.privacy.ledger import LedgerEntry
from client.privacy.randomness import SecureRandomness
from client.trainer.site import Site
from client.trainer.train import budget
from shared_model.messages import PrivacySpent
from shared_model.protocol import Protocol


def noised_counts(
    site: Site, protocol: Protocol, round_number: int, count: Callable[[], NDArray[np.integer[Any]]]
) -> tuple[NDArray[np.float64], float, PrivacySpent]:
    """The counts with noise, its standard deviation, and what it cost.

    One woman is in exactly one count, so the sensitivity is 1 and this is one Gaussian mechanism without sampling
    (Dwork and Roth 2014, appendix A).

    Args:
        count: makes the counts, of any shape; called once the ledger has been charged.

    Raises:
        BudgetExhaustedError: too little is left; nothing was counted.
        StorageError: the ledger refuses.
    """
    terms, std, women = protocol.privacy, site.decision(protocol).metrics_noise, site.pseudonyms("test")
    entry = LedgerEntry(
        group="metrics", study=protocol.study, protocol_sha256=protocol.sha256, round=max(round_number, 1), attempt=1,
        noise_multiplier=std, sample_rate=1.0, steps=1,
    )  # fmt: skip
    reservation = site.ledger.reserve(entry, budget=budget(site, protocol), delta=terms.delta, pseudonyms=women)
    counts = count()
    noise = SecureRandomness().normal(counts.size, std=std).numpy()
    site.ledger.settle(reservation)
    account = site.ledger.account("metrics", pseudonyms=women, delta=terms.delta)
    return counts + noise.reshape(counts.shape), std, PrivacySpent(
        epsilon=account.epsilon(delta=terms.delta), budget=budget(site, protocol), delta=terms.delta,
        noise_multiplier=std, sample_rate=1.0, steps=account.steps,
    )  # fmt: skip
