"""Who trains and who is tested in each run of a design, and what all runs cost a woman; called by `roll` and `price`.

Three designs: k-fold cross-validation across the federation (fold f is held out at *all* sites in run f, so that every
run is a federation without those women), leave-one-site-out (what a hospital may expect that never took part), and a
temporal hold-out (what the next years may bring). Thresholds, temperatures and whatever else is fitted come from women
of the run's own `selection`, never from its test women.

With differential privacy every run is a release about the women it trained on, and **all releases add up**:
:func:`epsilon` composes them. A woman of k-fold cross-validation is trained on in k - 1 runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.privacy.accountant import Account
from shared_model.cohort import assign_fold
from shared_model.errors import CohortError, ConfigError
from shared_model.protocol import Protocol

ALL_SITES, WITHOUT = "all_sites", "without_"  # names of runs that leave sites out: none, or the one that follows
Rows = Mapping[str, NDArray[np.int64]]  # by site: positions of patients in the site's cohort, ascending


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a design. train: rows of the sites that take part; a site that is left out is not in it, or has
    no rows. test: rows that the run is judged on; nobody of them trains in it."""

    name: str
    train: Rows
    test: Rows


def cross_validation(
    sites: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[int]], *, k: int, salt: str
) -> list[Run]:
    """k runs; each woman is tested in exactly one and trained on in the others. Folds are by pseudonym alone, so that
    they stay as women arrive.

    Args:
        sites: pseudonyms by site, in the order of the site's cohort. labels: of the same women.

    Raises:
        CohortError: k below 2, or over all sites a fold's test women lack a class.
    """
    folds = {site: np.array([assign_fold(p, k=k, salt=salt) for p in names], dtype=np.int64)
             for site, names in sites.items()}  # fmt: skip
    runs = []
    for fold in range(k):
        test = {site: np.flatnonzero(found == fold) for site, found in folds.items()}
        train = {site: np.flatnonzero(found != fold) for site, found in folds.items()}
        tested = np.concatenate([np.asarray(labels[site])[rows] for site, rows in test.items()])
        if set(tested.tolist()) != {0, 1}:
            raise CohortError(
                f"fold {fold} of {k} lacks a class", found=f"{int(tested.sum())} of {len(tested)} positive",
                expected="both classes in each fold", remedy="use fewer folds",
            )  # fmt: skip
        runs.append(Run(name=f"fold_{fold}", train=train, test=test))
    return runs


def leave_one_site_out(
    sites: Mapping[str, Sequence[str]], *, held_back: Rows | None = None, reference: bool = False
) -> list[Run]:
    """One run a site: all others train, all its women are tested.

    Args:
        held_back: women of each site whom no run trains on, so that a federation with the site can be tested on them.
        reference: one more run, `all_sites`, first: everybody trains but those who are held back, and they are tested.

    Raises:
        ConfigError: fewer than two sites.
    """
    if len(sites) < 2:
        raise ConfigError("leave-one-site-out needs two sites", found=len(sites))
    everyone = {site: np.arange(len(names), dtype=np.int64) for site, names in sites.items()}
    kept = held_back or {}
    train = {site: np.setdiff1d(rows, kept.get(site, [])) for site, rows in everyone.items()}
    runs = [Run(name=ALL_SITES, train=train, test={site: kept[site] for site in sorted(kept)})] if reference else []
    return runs + [
        Run(name=f"{WITHOUT}{left}", train={site: rows for site, rows in train.items() if site != left},
            test={left: everyone[left]})
        for left in sorted(sites)
    ]  # fmt: skip


def temporal_hold_out(
    years: Mapping[str, Sequence[float]], *, until: float, held_back: Rows | None = None
) -> Run:  # fmt: skip
    """One run: women examined before `until` train, the later ones are tested, and those earlier ones who are held back
    (so that later women can be compared with others of the training's own years).

    A prepared cohort holds no dates (de-identification shifts them), so `years` is the site's own knowledge: decimal
    years, or any number that orders examinations; NaN where it is not known, and such a woman is in neither part.

    Raises:
        CohortError: over all sites nobody is before, or nobody after.
    """
    kept = held_back or {}
    before = {site: np.flatnonzero(np.asarray(found) < until) for site, found in years.items()}
    after = {site: np.flatnonzero(np.asarray(found) >= until) for site, found in years.items()}
    train = {site: np.setdiff1d(rows, kept.get(site, [])) for site, rows in before.items()}
    test = {site: np.union1d(rows, np.intersect1d(before[site], kept.get(site, []))).astype(np.int64)
            for site, rows in after.items()}  # fmt: skip
    counts = [sum(len(rows) for rows in part.values()) for part in (train, after)]
    if 0 in counts:
        raise CohortError("a temporal hold-out needs women before and after", found=f"{counts[0]} and {counts[1]}",
                          expected="at least one of each", remedy="choose another date")  # fmt: skip
    return Run(name=f"until_{until:g}", train=train, test=test)


def releases(runs: Sequence[Run]) -> dict[str, int]:
    """By site: in how many runs its most often trained-on woman takes part; that many releases are about her."""
    sites = sorted({site for run in runs for site in (*run.train, *run.test)})
    most = {}
    for site in sites:
        rows = [run.train[site] for run in runs if site in run.train]
        most[site] = int(np.bincount(np.concatenate(rows)).max()) if rows and any(len(r) for r in rows) else 0
    return most


def epsilon(protocol: Protocol, runs: Sequence[Run]) -> dict[str, float]:
    """By site: epsilon, at the protocol's delta, of a woman over all runs of a design, each run by this protocol.

    Raises:
        ConfigError: the protocol has no differential privacy, so there is nothing to add up.
    """
    if not protocol.private:
        raise ConfigError("the protocol has no differential privacy", remedy="releases add up where noise is added")
    return composed(protocol.mechanisms(protocol.rounds), runs, delta=protocol.privacy.delta)


def composed(one: Sequence[tuple[float, float, int]], runs: Sequence[Run], *, delta: float) -> dict[str, float]:
    """By site: epsilon at `delta` of a woman over all runs. one: (sigma, q, steps) of the phases of each run."""
    found = {}
    for site, times in releases(runs).items():
        account = Account.from_lists([[sigma, rate, steps * times] for sigma, rate, steps in one]) if times else None
        found[site] = 0.0 if account is None else account.epsilon(delta=delta)
    return found


def in_words(protocol: Protocol, runs: Sequence[Run]) -> str:
    """One sentence for a report: how many trainings, and what they cost a woman together."""
    head = f"{len(runs)} trainings"
    if not protocol.private:
        return f"{head} without differential privacy."
    spent = epsilon(protocol, runs)
    most = max(spent, key=lambda site: spent[site])
    return (
        f"{head}; a woman takes part in up to {max(releases(runs).values())}. All releases add up: epsilon "
        f"{spent[most]:.2f} at {most} (delta {protocol.privacy.delta:g}), where one training alone spends "
        f"{Account.from_lists(protocol.mechanisms(protocol.rounds)).epsilon(delta=protocol.privacy.delta):.2f}."
    )
