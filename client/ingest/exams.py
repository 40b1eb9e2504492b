"""Finds a site's films and chooses which of them to decode, by their headers alone; called by prepare.

One exam of a woman goes into the cohort, the latest, with one film of each view. Choosing before decoding saves the
time of everything that would be thrown away.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.ingest.pseudonyms import Pseudonyms
from client.ingest.quarantine import Quarantine
from shared_model.errors import ImagingError
from shared_model.imaging import Film, FilmPool, FilmRefusedError, View


@dataclass(frozen=True)
class Chosen:
    """A film to decode. ordinal: its number in the order of paths, from 1."""

    ordinal: int
    path: Path
    pseudonym: str
    film: Film


def find_films(folder: Path) -> list[Path]:
    """Every file below `folder`, in the order of their paths; links are not followed out of the folder."""
    found: list[Path] = []
    for directory, _, names in os.walk(folder, followlinks=False):
        found += [Path(directory, name) for name in names]
    return sorted(found, key=os.fsencode)


def choose_films(
    paths: Sequence[Path],
    *,
    pool: FilmPool,
    pseudonyms: Pseudonyms,
    labelled: Collection[str],
    quarantine: Quarantine,
) -> tuple[list[Chosen], set[str]]:
    """(films to decode, in the order of pseudonyms and views; pseudonyms of all patients that a film belongs to).

    Args:
        labelled: pseudonyms with a usable row; other women's films are not worth decoding.
    """
    seen: set[str] = set()
    admitted: list[Chosen] = []
    for index, result in pool.run("header", paths):
        if isinstance(result, Film):
            admitted.append(Chosen(index + 1, paths[index], pseudonyms.of(result.patient_id), result))
            seen.add(admitted[-1].pseudonym)
            continue
        assert isinstance(result, ImagingError)
        owner = pseudonyms.of(result.patient_id) if isinstance(result, FilmRefusedError) else ""
        seen |= {owner} - {""}
        quarantine.add_film(index + 1, owner, result)
    by_patient: dict[str, list[Chosen]] = defaultdict(list)
    for film in _unique(admitted, pool, quarantine):
        if film.pseudonym in labelled:
            by_patient[film.pseudonym].append(film)
        else:
            quarantine.add("film", film.ordinal, film.pseudonym, "no_row")
    return [film for name in sorted(by_patient) for film in _latest_exam(by_patient[name], quarantine)], seen


def _unique(films: list[Chosen], pool: FilmPool, quarantine: Quarantine) -> list[Chosen]:
    """One film for each SOPInstanceUID. Where several files claim one, they are decoded at once: broken ones do not
    count, equal ones are copies of the first, and films that differ all go, because nobody can say which is right."""
    by_uid: dict[str, list[Chosen]] = defaultdict(list)
    for film in films:
        by_uid[film.film.sop_uid].append(film)
    kept = [group[0] for group in by_uid.values() if len(group) == 1]
    for group in (group for group in by_uid.values() if len(group) > 1):
        shown: dict[tuple[str, str, bytes], list[Chosen]] = defaultdict(list)
        for index, result in pool.run("prepare", [film.path for film in group]):
            film = group[index]
            if isinstance(result, View):
                shown[(film.pseudonym, film.film.view, result.pixels.tobytes())].append(film)
            else:
                assert isinstance(result, ImagingError)
                quarantine.add_film(film.ordinal, film.pseudonym, result)
        reason = "duplicate_uid" if len(shown) == 1 else "conflicting_uid"
        whole = [film for equal in shown.values() for film in equal]
        kept += whole[:1] if reason == "duplicate_uid" else []
        for film in whole[1:] if reason == "duplicate_uid" else whole:
            quarantine.add("film", film.ordinal, film.pseudonym, reason)
    return kept


def _latest_exam(films: list[Chosen], quarantine: Quarantine) -> list[Chosen]:
    """One film of each view of the latest exam, views in alphabetical order."""
    exam = max((film.film.study_date, film.film.study_uid) for film in films)
    by_view: dict[str, list[Chosen]] = defaultdict(list)
    for film in films:
        if (film.film.study_date, film.film.study_uid) == exam:
            by_view[film.film.view].append(film)
        else:
            quarantine.add("film", film.ordinal, film.pseudonym, "older_exam")
    chosen: list[Chosen] = []
    for view in sorted(by_view):
        repeated = sorted(by_view[view], key=lambda film: film.film.order)
        chosen.append(repeated[-1])
        for film in repeated[:-1]:
            quarantine.add("film", film.ordinal, film.pseudonym, "repeat_view")
    return chosen
