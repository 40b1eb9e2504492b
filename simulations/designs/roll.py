"""The plan of a design by name: which woman trains and which is tested in each run; written once, before the first run.

    <run directory>/design/plan.json    runs by pseudonym, years (temporal), the price that was declared

Who goes on with a stopped design goes on by this file. Called by `study`; needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared_model.cohort import Cohort, split_indices
from shared_model.errors import CohortError, ConfigError, StorageError
from shared_model.strategies import LEAST_SUM_SITES
from simulations.designs.plans import Run, cross_validation, leave_one_site_out, temporal_hold_out
from simulations.designs.price import Price
from simulations.designs.settings import CROSS_VALIDATION, LEAVE_ONE_SITE_OUT, TEMPORAL, kind_of
from simulations.designs.years import Years, by_site
from simulations.parties import HELD_OUT, split_of, write_small
from simulations.plan import Config

PLAN_VERSION = 1
PLAN = "plan.json"
Names = Mapping[str, Sequence[str]]  # by site: pseudonyms


@dataclass(frozen=True, kw_only=True)
class NamedRun:
    """One training by name. train: of the sites that take part; a site without women is in neither mapping."""

    name: str
    train: Names
    test: Names

    @property
    def parties(self) -> tuple[str, ...]:
        """Sites that train, in order."""
        return tuple(sorted(self.train))


@dataclass(frozen=True, kw_only=True)
class Roll:
    """All of a design. years: of tested women, for a temporal one. unknown: women without a year, by site."""

    kind: str
    runs: tuple[NamedRun, ...]
    price: Price
    years: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        """Whether each training is a noised release."""
        return self.price.granted is not None

    def write(self, folder: Path) -> None:
        """Write `plan.json`, atomically."""
        document = {
            "plan_version": PLAN_VERSION, "kind": self.kind, "price": self.price.to_json(), "years": dict(self.years),
            "unknown": dict(self.unknown),
            "runs": [{"name": run.name, "train": _lists(run.train), "test": _lists(run.test)} for run in self.runs],
        }  # fmt: skip
        write_small(folder / PLAN, json.dumps(document) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Roll:
        """Read it back.

        Raises:
            StorageError: absent or damaged.
        """
        path = folder / PLAN
        try:
            values = json.loads(path.read_bytes())
            if values["plan_version"] != PLAN_VERSION:
                raise ValueError("of another version")
            runs = tuple(NamedRun(name=str(r["name"]), train=r["train"], test=r["test"]) for r in values["runs"])
            return cls(kind=values["kind"], runs=runs, price=Price.from_json(values["price"]), years=values["years"],
                       unknown=values["unknown"])  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(f"{path} cannot be read: {type(error).__name__}", remedy="restore it from the run's "
                               "backup, or start the design anew in another folder") from None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Runs by row, before they are priced and named."""

    runs: Sequence[Run]
    sites: Names
    years: Mapping[str, Sequence[float]] = field(default_factory=dict)


def draw(config: Config, cohorts: Mapping[str, Path], *, years: Years | None) -> Drawn:
    """The runs of a design over these cohorts.

    Args:
        cohorts: by party; the evaluator's women are in no run of a site. years: by pseudonym, for a temporal design.

    Raises:
        CohortError, ConfigError: the women do not allow it.
    """
    opened = {name: Cohort.open(path) for name, path in sorted(cohorts.items()) if name != HELD_OUT}
    sites: Names = {name: cohort.pseudonyms for name, cohort in opened.items()}
    kind, design = kind_of(config), config["design"]
    back = {name: split_indices(cohort, **split_of(config, name))["test"] for name, cohort in opened.items()}
    when: Mapping[str, Sequence[float]] = {}
    if kind == CROSS_VALIDATION:
        labels = {name: cohort.labels.tolist() for name, cohort in opened.items()}
        runs = cross_validation(sites, labels, k=design["folds"], salt=str(split_of(config, HELD_OUT)["salt"]))
    elif kind == LEAVE_ONE_SITE_OUT:
        runs = leave_one_site_out(sites, held_back=back if design["reference"] else None,
                                  reference=design["reference"])  # fmt: skip
    else:
        assert kind == TEMPORAL
        assert years is not None
        when = by_site(years, sites, strict=design["years"] is not None)
        runs = [temporal_hold_out(when, until=float(design["until"]), held_back=back)]
    for run in runs:
        _check(run, opened, config)
    return Drawn(runs=runs, sites=sites, years=when)


def name_runs(kind: str, drawn: Drawn, price: Price) -> Roll:
    """The runs by pseudonym."""
    runs = tuple(NamedRun(name=run.name, train=_named(run.train, drawn.sites), test=_named(run.test, drawn.sites))
                 for run in drawn.runs)  # fmt: skip
    known = {name: float(year) for site, years in drawn.years.items()
             for name, year in zip(drawn.sites[site], years, strict=True) if not np.isnan(year)}  # fmt: skip
    tested = {name for run in runs for names in run.test.values() for name in names}
    return Roll(kind=kind, runs=runs, price=price, years={name: known[name] for name in known if name in tested},
                unknown={site: int(np.isnan(years).sum()) for site, years in drawn.years.items()})  # fmt: skip


def _check(run: Run, opened: Mapping[str, Cohort], config: Config) -> None:
    parties = [site for site, rows in run.train.items() if len(rows)]
    if config["secure_sum"]["kind"] != "none" and len(parties) < LEAST_SUM_SITES:
        raise ConfigError(f"secure_sum: the run {run.name} has too few sites for a sum", found=f"{len(parties)} sites",
                          expected=f"at least {LEAST_SUM_SITES} in each run",
                          remedy="more sites, or secure_sum=none")  # fmt: skip
    for what, part in (("trains on", run.train), ("tests", run.test)):
        labels = _labels(part, opened)
        if len(set(labels.tolist())) < 2:
            raise CohortError(f"the run {run.name} {what} women of one outcome only",
                              found=f"{int(labels.sum())} with cancer of {len(labels)}", expected="both outcomes",
                              remedy="more women, fewer folds, or another date")  # fmt: skip


def _labels(part: Mapping[str, NDArray[np.int64]], opened: Mapping[str, Cohort]) -> NDArray[np.uint8]:
    found = [opened[site].labels[rows] for site, rows in part.items() if len(rows)]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.uint8)


def _named(part: Mapping[str, NDArray[np.int64]], sites: Names) -> dict[str, list[str]]:
    return {site: [sites[site][row] for row in rows] for site, rows in part.items() if len(rows)}


def _lists(names: Names) -> dict[str, list[str]]:
    return {site: list(found) for site, found in names.items()}

