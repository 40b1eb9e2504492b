"""A site leaves a study for good: approval and stored answers go, and what it had given is said. For `site withdraw`.

What left cannot be taken back: it is in the models of the rounds that are closed, and their epsilon covers it. What the
coordinator can do is go on from before the site's first contribution (`mammofed server rollback`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.deploy.home import SiteHome
from client.deploy.policy_file import Policy
from client.privacy.book import account_of
from client.privacy.egress_log import RELEASED, read_list
from client.privacy.ledger import Ledger
from client.trainer.consent import decline
from client.trainer.withdrawn import mark_withdrawn
from shared_model.errors import ConfigError, StorageError
from shared_model.private_files import sync_folder

STORED = ("replies", "secure")
DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class Withdrawal:
    """What a site had given to a study that it has left.

    since: time of the mark. rounds: of which an update left. unsent: rounds that were charged and of which nothing
    left. epsilon: of each patient by this study's charges alone; None: nothing was charged. total: over all studies.
    noised: whether all that left was; False also where nothing protected it. removed: stored answers that are gone.
    """

    study: str
    since: str
    rounds: tuple[int, ...]
    unsent: tuple[int, ...]
    epsilon: float | None
    total: float
    delta: float
    noised: bool
    removed: int


def withdraw(home: SiteHome, study: str, *, release: str, reason: str = "") -> Withdrawal:
    """Leave `study`; a second time changes nothing, and says the same.

    First the mark is on the disk, so that a crash leaves no half approval behind.

    Raises:
        ConfigError: nothing is known of such a study here. StorageError: the disk refuses, or ledger or egress list
            cannot be read.
    """
    left = _left(home.state, study)
    charges = [row for row in Ledger(home.state / "ledger.json").records() if row["study"] == study]
    known = left or charges or _offered(home, study)
    if not known:
        raise ConfigError(f"nothing is known here of a study {study}", remedy="`mammofed site status` names them")
    mark = mark_withdrawn(home.trainer, study, reason=reason)
    decline(home, study, release=release)
    removed = _remove(home.state, study)
    delta = Policy.read(home.policy_file).delta_limit or DELTA
    trained = [row for row in charges if row["group"] == "train"]
    rounds = tuple(sorted({number for number, _ in left}))
    return Withdrawal(
        study=study, since=mark.time, rounds=rounds, removed=removed, delta=delta,
        unsent=tuple(sorted({int(row["round"]) for row in trained} - set(rounds))),
        epsilon=account_of(trained).epsilon(delta=delta) if trained else None,
        total=Ledger(home.state / "ledger.json").site_epsilon(delta=delta),
        noised=all(protected for _, protected in left),
    )  # fmt: skip


def words_of(found: Withdrawal, *, site: str) -> Iterator[str]:
    """It in lines."""
    yield f"Withdrawn    {site} has left {found.study} for good, since {found.since[:19]}"
    if not found.rounds:
        yield "Contributed  nothing of this site's patients left for it"
    else:
        yield f"Contributed  rounds {_ranges(found.rounds)}: in every model from round {found.rounds[0]} on"
    if found.rounds and found.noised and found.epsilon is not None:
        yield (f"Covered      those models by epsilon {found.epsilon:.2f} at delta {found.delta:g} for each patient, "
               "which goes on to hold")  # fmt: skip
    elif found.rounds:
        yield "Covered      by nothing: those rounds trained without differential privacy"
    if found.unsent:
        yield f"Charged      rounds {_ranges(found.unsent)} as well, of which nothing left; a charge is never undone"
    yield f"Spent        epsilon {found.total:.2f} over all studies: the ledger stays"
    yield f"Removed      {found.removed} stored answers, which could only have been sent again"
    yield "Coordinator  hears of it with the next heartbeat; its requests are refused (exit code 30)"
    if found.rounds:
        yield (f"Next         to have it go on without this site's part: `mammofed server rollback HOME {found.study} "
               f"--without {site}`, at the coordinator")  # fmt: skip


def _left(state: Path, study: str) -> list[tuple[int, bool]]:
    """Rounds of which an update left, in clear or masked, and whether it was noised or hidden in a sum of such."""
    rounds = []
    for entry, values in read_list(state):
        fields = entry.fields
        if entry.kind != RELEASED or fields.get("study") != study or fields.get("part") != 1:
            continue
        update = [value for value in values if value.purpose == "model update" or value.name == "masked_words"]
        given = fields.get("outcome") == "trained" or (fields.get("outcome") == "step mask" and update)
        if given and isinstance(fields.get("round"), int):
            rounds.append((int(str(fields["round"])), all(value.protection != "unprotected" for value in update)))
    return rounds


def _offered(home: SiteHome, study: str) -> bool:
    places = (home.protocols, home.inbox)
    names = [path.name for place in places if place.is_dir() for path in place.glob(f"{study}-*.json")]
    return any(len(name) == len(study) + len("-.json") + 16 for name in names)


def _remove(state: Path, study: str) -> int:
    """Stored answers and values of a study; a trainer that is in the middle of a round finds its approval gone."""
    count = 0
    for place in STORED:
        for folder in (state / place).glob(f"{study}-*"):
            if len(folder.name) != len(study) + 17 or not folder.is_dir():
                continue  # of a study whose name begins like this one's
            count += sum(1 for path in folder.iterdir() if path.is_file() and path.stat().st_size)
            try:
                shutil.rmtree(folder)
                sync_folder(folder.parent)
            except OSError as error:
                raise StorageError("stored answers could not be removed; the study is left all the same",
                                   found=error.strerror, remedy="run it again") from None  # fmt: skip
    return count


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers in words.

    >>> _ranges((1, 2, 3, 5))
    '1-3, 5'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
