"""What a study would still cost the patients of a site, given its ledger; for review, doctor and `ledger what-if`.

Nothing is written. The answer holds if every round that is to come is asked once; a repeated attempt costs once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client.privacy.accountant import Account
from client.privacy.ledger import Group, Ledger
from client.privacy.policy import Decision
from shared_model.protocol import Protocol


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Patients who have taken part in the same. count: how many; 0: any whom the ledger does not know by name."""

    count: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Epsilon at the protocol's delta, now and after the study, of the group's patients by what they have spent.

    rounds: of this study that are still to come. limit: the least of what the study promises and the policy allows.
    """

    group: Group
    delta: float
    rounds: int
    limit: float
    kinds: tuple[Kind, ...]

    @property
    def before(self) -> float:
        """Of the one who has spent most."""
        return max((kind.before for kind in self.kinds), default=0.0)

    @property
    def after(self) -> float:
        """Of the one who will have spent most."""
        return max((kind.after for kind in self.kinds), default=0.0)

    @property
    def affordable(self) -> bool:
        """Whether the site can take part to the end; a calibrated study meets its own promise to rounding."""
        return self.after <= self.limit + 1e-6 * max(1.0, self.limit)


def limit_of(epsilon_limit: float | None, protocol: Protocol) -> float:
    """Greatest epsilon that a patient may reach: the protocol's, or less where the site says so."""
    return protocol.privacy.epsilon if epsilon_limit is None else min(epsilon_limit, protocol.privacy.epsilon)


def outlook(
    ledger: Ledger, protocol: Protocol, decision: Decision, group: Group, *, epsilon_limit: float | None,
    pseudonyms: Sequence[str] | None,
) -> Outlook:  # fmt: skip
    """Work out a study for the patients of one group.

    Args:
        decision: the site's on the protocol: what it does with more noise costs less.
        pseudonyms: the group's patients; None: all whom the ledger knows, and one whom it does not.

    Raises:
        StorageError: the ledger cannot be read.
    """
    used, delta = decision.apply(protocol), protocol.privacy.delta
    done = {record["round"] for record in ledger.records()
            if record["protocol_sha256"] == protocol.sha256 and record["group"] == group}  # fmt: skip
    charge, rounds = Account(), 0
    if group == "train":
        left = [number for number in range(1, protocol.rounds + 1) if number not in done] if protocol.private else []
        rounds = len(left)
        for number in left:
            charge = charge.add(noise_multiplier=used.noise_multiplier(number), sample_rate=used.sample_rate(number),
                                steps=used.steps(number))  # fmt: skip
    elif protocol.private and decision.metrics and not done:  # one release at the end
        charge = charge.add(noise_multiplier=decision.metrics_noise, sample_rate=1.0, steps=1)
    kinds = tuple(Kind(count=spender.count, before=spender.account.epsilon(delta=delta),
                       after=spender.account.merge(charge).epsilon(delta=delta))
                  for spender in ledger.spenders(group, pseudonyms=pseudonyms))  # fmt: skip
    return Outlook(group=group, delta=delta, rounds=rounds, limit=limit_of(epsilon_limit, protocol), kinds=kinds)
