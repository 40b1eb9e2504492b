"""Checks a site's ledger offline: the chain, what others recorded of it, and epsilon by an independent accountant.

The trainer accounts with Opacus' PRV. Here the same entries are composed as privacy loss distributions by Google's
dp-accounting (Apache-2.0; Meiser and Mohammadi 2018, Koskela et al. 2020, Doroshenko et al. 2022, arXiv:2207.04380),
which shares no code with it and rounds upwards, too. Where the two differ by more than `AGREE`, somebody is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.privacy.accountant import Account
from client.privacy.book import GROUPS, Group, worst
from client.privacy.chain import Head
from client.privacy.heads import heads
from client.privacy.ledger import Ledger
from shared_model.audit.entries import read_entries
from shared_model.errors import ConfigError, PrivacyError, StorageError

AGREE: Final = 0.01  # relative; PRV's own bound on its error is 0.001 below epsilon 2 and 0.01 above
GRID: Final = 1e-3  # discretisation of the privacy loss at epsilon 1 and above; finer below


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Epsilon of who has spent most in a group, by both accountants. women: in the group, as far as it names them."""

    group: Group
    women: int
    prv: float
    pld: float

    @property
    def agrees(self) -> bool:
        """Whether the two differ by at most `AGREE`, or by PRV's own error where epsilon is tiny."""
        return abs(self.prv - self.pld) <= max(AGREE * self.pld, 2e-3)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What holds of a ledger. entries: lines of its chain. unsettled: reservations whose round nobody saw; they count.
    anchor: whether it is there. witnessed: entries of the audit log that hold the ledger's head; covered: up to which
    line of the ledger the last of them reaches."""

    log: str
    entries: int
    reservations: int
    unsettled: int
    anchor: bool
    witnessed: int
    covered: int
    delta: float
    comparisons: tuple[Comparison, ...]

    def check(self) -> None:
        """Stop where the accountants disagree.

        Raises:
            PrivacyError: they do.
        """
        for one in self.comparisons:
            if not one.agrees:
                raise PrivacyError(f"two accountants disagree on what group `{one.group}` has spent",
                                   found=f"PRV {one.prv:.4f}, PLD {one.pld:.4f}", expected="within 1 %",
                                   remedy="train nothing and report it: one of them has an error")  # fmt: skip


def verify_ledger(ledger: Ledger, *, delta: float, audit: Path | None = None) -> Verified:
    """Check a ledger.

    Args:
        delta: at which epsilon is computed.
        audit: the trainer's audit log, whose heads of the ledger must all fit; None, or absent: there are none.

    Raises:
        StorageError: changed, cut, an older copy, gone, or not begun. AuditError: the audit log is no good itself.
        ConfigError: the independent accountant is not installed.
    """
    head = ledger.head()
    if head is None:
        raise StorageError(f"privacy ledger {ledger.path.name}: nothing is in it yet, or it is of an older release",
                           remedy="nothing was spent here by this release; it begins with the first private round")
    found = _recorded(audit) if audit is not None and audit.exists() else []
    ledger.check_heads(found, witness="the trainer's audit log")
    records = ledger.records()
    return Verified(
        log=head.log, entries=head.sequence, reservations=len(records),
        unsettled=sum(record["state"] == "reserved" for record in records), anchor=ledger.anchor.exists(),
        witnessed=len(found), covered=max((one.sequence for one in found), default=0), delta=delta,
        comparisons=tuple(_compare(ledger, group, delta) for group in GROUPS),
    )  # fmt: skip


def pld_epsilon(account: Account, *, delta: float) -> float:
    """Epsilon of an account at `delta` as privacy loss distributions compose it; an upper bound.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    rows = [row for row in account.rows if row.steps]
    if not rows:
        return 0.0
    try:
        import dp_accounting
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise ConfigError("the independent accountant is not installed", expected="dp-accounting",
                          remedy="install the release with all that it names") from None  # fmt: skip
    rough = account.epsilon(delta=delta)
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
                               value_discretization_interval=min(GRID, max(1e-5, GRID * rough)))  # fmt: skip
    for row in rows:
        gaussian = dp_accounting.GaussianDpEvent(row.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(row.sample_rate, gaussian), row.steps)
    return float(accountant.get_epsilon(delta))


def _compare(ledger: Ledger, group: Group, delta: float) -> Comparison:
    spenders = ledger.spenders(group)
    account = worst(spenders, delta=delta)
    return Comparison(group=group, women=sum(spender.count for spender in spenders),
                      prv=account.epsilon(delta=delta), pld=pld_epsilon(account, delta=delta))  # fmt: skip


def _recorded(audit: Path) -> Sequence[Head]:
    try:
        with audit.open("rb") as stream:
            return heads(entry.fields for entry in read_entries(stream))
    except OSError as error:
        raise StorageError(f"the audit log {audit} cannot be read: {error.strerror}") from None
