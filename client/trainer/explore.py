"""A site's counts for an exploration: made when a secure sum of them is opened, noised and charged where it says so.

They leave in the sum only. Without noise they are exact in it, and no epsilon covers what the sum tells: a site whose
policy says `private_only` refuses such an exploration like every study without privacy. With noise this site adds all
of it by itself, before masking: its women's epsilon holds whatever the others and the coordinator do.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.privacy.ledger import LedgerEntry
from client.privacy.randomness import SecureRandomness
from client.privacy.what_if import limit_of
from client.trainer.site import Site
from shared_model.contract import load_contract
from shared_model.contract.exploration import count, layout, sensitivity
from shared_model.errors import ProtocolError
from shared_model.protocol import Protocol

ROUND: Final = 1  # an exploration is one charge, of one round


def counts_for_sum(site: Site, protocol: Protocol) -> NDArray[np.float32]:
    """This site's counts of its training women, float32, in the shared order; charged before noise is drawn.

    Raises:
        ProtocolError: the protocol explores nothing, or by another contract.
        BudgetExhaustedError: the women cannot afford it; nothing was charged.
        StorageError: the ledger cannot be written.
    """
    terms = protocol.exploration
    if terms is None:
        raise ProtocolError("the protocol explores nothing", found=protocol.study)
    site.fields(protocol)  # refuses another contract
    contract, indices = load_contract(), site.indices("train")
    histograms = layout(contract, fields=terms.fields, bins=terms.bins)
    counts = count(site.cohort, indices, contract, histograms).astype(np.float64)
    if not protocol.private:
        return counts.astype(np.float32)
    sigma = site.decision(protocol).apply(protocol).noise_multiplier(ROUND)
    entry = LedgerEntry(group="train", study=protocol.study, protocol_sha256=protocol.sha256, round=ROUND, attempt=1,
                        noise_multiplier=sigma, sample_rate=1.0, steps=1)  # fmt: skip
    reservation = site.ledger.reserve(entry, budget=limit_of(site.config.epsilon_limit, protocol),
                                      delta=protocol.privacy.delta, pseudonyms=site.pseudonyms("train"))  # fmt: skip
    noise = SecureRandomness().normal(counts.size, std=sigma * sensitivity(histograms)).numpy()
    site.ledger.settle(reservation)
    return np.asarray(counts + noise, dtype=np.float32)


def refuse_exploration(protocol: Protocol) -> None:
    """Refuse to train or evaluate for a protocol that only explores.

    Raises:
        ProtocolError: it does.
    """
    if protocol.exploration is not None:
        raise ProtocolError(f"{protocol.study} is an exploration: it trains and scores nobody",
                            remedy="propose a study for that")  # fmt: skip
