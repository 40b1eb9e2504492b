"""Decides which sites take part in an attempt and which model is chosen in the end; pure functions, for the loop."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

from shared_model.protocol import Protocol


def draw(protocol: Protocol, round_number: int) -> list[str]:
    """All sites in the round's drawn order: by SHA-256 of (seed, round, name), the same for ever and on any machine."""
    seed = protocol.seed
    names = [site.name for site in protocol.federation.sites]
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{round_number}/{name}".encode()).digest())


def choose_sites(
    protocol: Protocol, round_number: int, *, contributed: Collection[str], failed: Collection[str]
) -> tuple[str, ...]:
    """Sites of one attempt in name order: who contributed to an earlier attempt stays (its update counts, and it is not
    asked to spend privacy again), then those not tried yet, then those that failed, in the drawn order."""
    order = draw(protocol, round_number)
    kept = [name for name in order if name in contributed]
    fresh = [name for name in order if name not in contributed and name not in failed]
    again = [name for name in order if name not in contributed and name in failed]
    return tuple(sorted([*kept, *fresh, *again][: max(len(kept), protocol.federation.sites_per_round)]))


def choose_round(protocol: Protocol, selection_auc: Mapping[int, float]) -> int | None:
    """The round whose model is chosen by the protocol's rule, from its AUC on `selection` (1..R).

    None when the rule cannot be applied: no round was evaluated.
    """
    if protocol.evaluation.selection_rule == "last":
        return protocol.rounds
    if not selection_auc:
        return None
    return max(selection_auc, key=lambda number: (selection_auc[number], -number))


def due(protocol: Protocol, round_number: int) -> bool:
    """Whether a round's model is evaluated on `selection`: every n-th, and always the last."""
    return round_number % protocol.evaluation.every == 0 or round_number == protocol.rounds
