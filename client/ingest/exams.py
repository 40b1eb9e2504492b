"""Finds a site's films and chooses which of them to decode, by their headers alone; called by prepare.

One exam of a woman goes into the cohort, the one that her row is of, with one film of each view. Choosing before
decoding saves the time of everything that would be thrown away. All of it is in de-identified space (see reader).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.ingest.quarantine import Quarantine
from client.ingest.reader import FilmReader, SourceFilm
from shared_model.errors import ImagingError, StorageError
from shared_model.imaging import Film, FilmRefusedError, View


@dataclass(frozen=True)
class Chosen:
    """A film to decode. ordinal: its number in the order of the sources and paths, from 1."""

    ordinal: int
    source: SourceFilm
    film: Film

    @property
    def pseudonym(self) -> str:
        """Whose it is."""
        return self.film.patient_id


@dataclass(frozen=True)
class Admitted:
    """What the headers gave. films: that may be used, each UID once. seen: pseudonyms that any film belongs to."""

    films: tuple[Chosen, ...] = ()
    seen: frozenset[str] = frozenset()
    exams: Mapping[str, frozenset[str]] = field(default_factory=dict)


def find_films(folder: Path) -> list[Path]:
    """Every file below `folder`, in the order of their paths. A link to a folder is not followed; it is listed itself,
    so that it is set aside and not overlooked.

    Raises:
        StorageError: a folder cannot be listed, so that films would be lost without a word.
    """

    def fail(error: OSError) -> None:
        if error.filename == os.fspath(folder) and isinstance(error, FileNotFoundError):
            return  # there are no films
        raise StorageError(
            f"a folder below {folder} cannot be read: {error.strerror}", expected="folders that the importer may list",
            remedy=f"`find {folder} -type d ! -readable` finds those without permission",
        ) from None  # fmt: skip

    found: list[Path] = []
    for directory, folders, names in os.walk(folder, onerror=fail, followlinks=False):
        links = [name for name in folders if Path(directory, name).is_symlink()]
        found += [Path(directory, name) for name in (*names, *links)]
    return sorted(found, key=os.fsencode)


def admit_films(films: Sequence[SourceFilm], *, reader: FilmReader, quarantine: Quarantine) -> Admitted:
    """Read all headers; what cannot be used is set aside."""
    seen: set[str] = set()
    admitted: list[Chosen] = []
    for index, result in reader.run("header", films):
        if isinstance(result, Film):
            admitted.append(Chosen(index + 1, films[index], result))
            seen.add(result.patient_id)
            continue
        assert isinstance(result, ImagingError)
        owner = result.patient_id if isinstance(result, FilmRefusedError) else ""
        seen |= {owner} - {""}
        quarantine.add_film(index + 1, owner, result)
    kept = _unique(admitted, reader, quarantine)
    exams: dict[str, set[str]] = defaultdict(set)
    for film in kept:
        exams[film.pseudonym].add(film.film.study_date)
    return Admitted(tuple(kept), frozenset(seen), {name: frozenset(days) for name, days in exams.items()})


def choose_films(
    admitted: Admitted, *, exams: Mapping[str, str], barred: Mapping[str, str], quarantine: Quarantine
) -> list[Chosen]:
    """Films to decode, in the order of pseudonyms and views.

    Args:
        exams: pseudonym -> day of the exam that her row is of; "" or a day without films: her latest one.
        barred: pseudonym -> reason of the quarantine, for women whose films are not used whatever their rows say.
    """
    by_patient: dict[str, list[Chosen]] = defaultdict(list)
    for film in admitted.films:
        if film.pseudonym in barred:
            quarantine.add("film", film.ordinal, film.pseudonym, barred[film.pseudonym])
        elif film.pseudonym in exams:
            by_patient[film.pseudonym].append(film)
        else:
            quarantine.add("film", film.ordinal, film.pseudonym, "no_row")
    return [film for name in sorted(by_patient) for film in _one_exam(by_patient[name], exams[name], quarantine)]


def _unique(films: list[Chosen], reader: FilmReader, quarantine: Quarantine) -> list[Chosen]:
    """One film for each SOPInstanceUID. Where several files claim one, they are decoded at once: broken ones do not
    count, equal ones are copies of the first, and films that differ all go, because nobody can say which is right."""
    by_uid: dict[str, list[Chosen]] = defaultdict(list)
    for film in films:
        by_uid[film.film.sop_uid].append(film)
    kept = [group[0] for group in by_uid.values() if len(group) == 1]
    for group in (group for group in by_uid.values() if len(group) > 1):
        shown: dict[tuple[str, str, bytes], list[Chosen]] = defaultdict(list)
        for index, result in reader.run("prepare", [film.source for film in group]):
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


def _one_exam(films: list[Chosen], day: str, quarantine: Quarantine) -> list[Chosen]:
    """One film of each view of the exam of that day, or of the latest, views in alphabetical order."""
    of_day = [film for film in films if film.film.study_date == day]
    exam = max((film.film.study_date, film.film.study_uid) for film in of_day or films)
    by_view: dict[str, list[Chosen]] = defaultdict(list)
    for film in films:
        if (film.film.study_date, film.film.study_uid) == exam:
            by_view[film.film.view].append(film)
        else:
            later = film.film.study_date > exam[0]
            quarantine.add("film", film.ordinal, film.pseudonym, "later_exam" if later else "older_exam")
    chosen: list[Chosen] = []
    for view in sorted(by_view):
        repeated = sorted(by_view[view], key=lambda film: film.film.order)
        chosen.append(repeated[-1])
        for film in repeated[:-1]:
            quarantine.add("film", film.ordinal, film.pseudonym, "repeat_view")
    return chosen
