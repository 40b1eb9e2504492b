"""How a model can be judged besides one held-out split: who trains and who is tested, run by run. A plan, no training.

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

Rows = Mapping[str, NDArray[np.int64]]  # by site: positions of patients in the site's cohort, ascending


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a design. train: rows of the sites that take part; a site that is left out is not in it. test:
    rows that this run alone is judged on."""

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


def leave_one_site_out(sites: Mapping[str, Sequence[str]]) -> list[Run]:
    """One run a site: all others train, all its women are tested.

    Raises:
        ConfigError: fewer than two sites.
    """
    if len(sites) < 2:
        raise ConfigError("leave-one-site-out needs two sites", found=len(sites))
    everyone = {site: np.arange(len(names), dtype=np.int64) for site, names in sites.items()}
    return [
        Run(name=f"without_{left}", train={site: rows for site, rows in everyone.items() if site != left},
            test={left: everyone[left]})
        for left in sorted(sites)
    ]  # fmt: skip


def temporal_hold_out(years: Mapping[str, Sequence[float]], *, until: float) -> Run:
    """One run: women examined before `until` train, the later ones are tested.

    A prepared cohort holds no dates (de-identification shifts them), so `years` is the site's own knowledge: decimal
    years, or any number that orders examinations; NaN where it is not known, and such a woman is in neither part.

    Raises:
        CohortError: over all sites nobody is before, or nobody after.
    """
    train = {site: np.flatnonzero(np.asarray(found) < until) for site, found in years.items()}
    test = {site: np.flatnonzero(np.asarray(found) >= until) for site, found in years.items()}
    counts = [sum(len(rows) for rows in part.values()) for part in (train, test)]
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
    one = list(protocol.mechanisms(protocol.rounds))
    found = {}
    for site, times in releases(runs).items():
        account = Account.from_lists([[sigma, rate, steps * times] for sigma, rate, steps in one]) if times else None
        found[site] = 0.0 if account is None else account.epsilon(delta=protocol.privacy.delta)
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
