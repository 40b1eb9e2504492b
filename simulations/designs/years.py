"""When each woman was examined, for a temporal hold-out: the simulator's own dates, or a file of the sites; for `roll`.

A prepared cohort holds no dates: de-identification shifts them by a number of days of each woman's own. A simulated
hospital's table does, because the simulator drew them; the model never sees them (they are no field of the contract).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from client.ingest.pseudonyms import Pseudonyms
from shared_model.errors import CohortError, ConfigError
from simulations.plan import importer_key

MAX_BYTES = 256 << 20
COLUMNS = ["pseudonym", "year"]
EARLIEST, LATEST = 1900.0, 2200.0
SHOWN = 3  # names in an error

Years = Mapping[str, float]  # by pseudonym


def decimal_year(day: date) -> float:
    """A day as a decimal year: 1 January is the year itself.

    >>> decimal_year(date(2022, 7, 2))
    2022.498...
    """
    first, following = date(day.year, 1, 1), date(day.year + 1, 1, 1)
    return day.year + (day - first).days / (following - first).days


def simulated_years(sources: Mapping[str, Path], *, seed: int) -> Years:
    """The simulator's own dates of examination.

    Args:
        sources: each simulated site's folder of films and table. seed: of the study, which its importers' keys are
            derived from.

    Raises:
        CohortError: a table has no dates.
    """
    found: dict[str, float] = {}
    for site, folder in sources.items():
        pseudonyms = Pseudonyms(importer_key(seed, site))
        with (folder / "clinical.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                try:
                    found[pseudonyms.of(row["patient_id"])] = decimal_year(date.fromisoformat(row["exam_date"]))
                except (KeyError, ValueError):
                    raise CohortError(f"{folder / 'clinical.csv'}: no date of examination", expected="exam_date",
                                      remedy="give the years yourself: design.years=FILE.csv") from None  # fmt: skip
    return found


def read_years(path: Path) -> Years:
    """A CSV file with the columns `pseudonym`, `year` (decimal ones may be); an empty year is one that is not known.

    Raises:
        ConfigError: no such table; names the line, and never shows a date of a woman.
    """
    expected = "a CSV file with the columns pseudonym, year"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"design.years: {path} is too large", expected=f"at most {MAX_BYTES >> 20} MB")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            if table.fieldnames is None or [name.strip() for name in table.fieldnames] != COLUMNS:
                raise ConfigError(f"design.years: {path} has other columns", expected=expected,
                                  found=", ".join(table.fieldnames or [])[:80] or "nothing",
                                  remedy="write `pseudonym,year` as its first line")  # fmt: skip
            table.fieldnames = COLUMNS
            found: dict[str, float] = {}
            for row in table:
                _add(found, row, where=f"design.years: {path}, line {table.line_num}")
    except OSError as error:
        raise ConfigError(f"design.years: cannot read {path}: {error.strerror}", expected=expected) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"design.years: {path} is no table: {error}", expected=expected) from None
    return found


def _add(found: dict[str, float], row: Mapping[str, Any], *, where: str) -> None:
    pseudonym, text = (row["pseudonym"] or "").strip(), (row["year"] or "").strip()
    if not pseudonym or None in row:
        raise ConfigError(f"{where}: not two values", expected="pseudonym,year")
    if pseudonym in found:
        raise ConfigError(f"{where}: a pseudonym for the second time", found=pseudonym, expected="each woman once",
                          remedy="keep the examination that her films are of")  # fmt: skip
    if not text:
        return
    try:
        year = float(text)
    except ValueError:
        year = math.nan
    if not EARLIEST <= year <= LATEST:
        raise ConfigError(f"{where}: no year", expected=f"a number in {EARLIEST:.0f}..{LATEST:.0f}, as 2021 or 2021.5",
                          remedy="dates such as 2021-07-02 have to become years first")  # fmt: skip
    found[pseudonym] = year


def by_site(years: Years, sites: Mapping[str, Sequence[str]], *, strict: bool) -> dict[str, list[float]]:
    """Years in the order of each site's pseudonyms, NaN where they are not known.

    Args:
        strict: a pseudonym of nobody is an error, because a file of years was written for these women.

    Raises:
        ConfigError: that, or nobody's year is known.
    """
    everyone = {name for names in sites.values() for name in names}
    unknown = sorted(set(years) - everyone)
    if strict and unknown:
        raise ConfigError("design.years: names nobody of these sites", found=f"{len(unknown)}, such as "
                          f"{', '.join(unknown[:SHOWN])}", expected="pseudonyms of the prepared cohorts",
                          remedy="they stand in each cohort's patients.json")  # fmt: skip
    if not everyone & set(years):
        raise ConfigError("design=temporal: nobody's year of examination is known", found=f"{len(everyone)} women",
                          expected="a year of each", remedy="give design.years=FILE.csv")  # fmt: skip
    return {site: [years.get(name, math.nan) for name in names] for site, names in sites.items()}
