"""Reads films, de-identified, through the pool of decoders and the importer's memory; called by exams and prepare.

Whatever way a film comes, all that leaves here is in de-identified space: pseudonyms, keyed UIDs, shifted dates. Pixels
are rounded to float16, which is what a cohort holds, so that a remembered view is the very same as a fresh one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from client.ingest.deidentify import OLDEST, Deidentifier
from client.ingest.vault import Answer, Vault
from shared_model.errors import ImagingError
from shared_model.imaging import Film, FilmPool, FilmRefusedError, View
from shared_model.imaging.wire import decode_reply, encode_error

Work = Literal["header", "prepare"]
Result = Film | View | ImagingError
_PASSING = frozenset({"unreadable", "timed_out", "decoder_crashed"})  # the machine's fault as often as the film's


@dataclass(frozen=True)
class SourceFilm:
    """A film's file. received: fetched from a PACS and de-identified before it was stored."""

    path: Path
    received: bool = False


class FilmReader:
    """Films -> headers or views.

    Args:
        pool: decoders of the site's pipeline and policy.
        deidentifier: under the site's key.
        vault: remembers what films gave, or None: everything is read (the simulator's hospitals are prepared once).
    """

    def __init__(self, pool: FilmPool, deidentifier: Deidentifier, vault: Vault | None = None) -> None:
        self._pool, self._deidentifier, self._vault = pool, deidentifier, vault
        self._settings = pool.settings_sha256[:32]

    def run(self, work: Work, films: Sequence[SourceFilm]) -> Iterator[tuple[int, Result]]:
        """(index, result) for each film in order; a refused film is a result, not an exception."""
        stamps = [self._stamp(film.path) for film in films]
        known = [self._known(work, film, stamp) for film, stamp in zip(films, stamps, strict=True)]
        fresh = self._pool.run(work, [film.path for film, old in zip(films, known, strict=True) if not old])
        for index, film in enumerate(films):
            if known[index]:
                yield index, self._recalled(work, film, stamps[index])
            else:
                result = self._deidentified(next(fresh)[1], film)
                self._keep(work, film, stamps[index], result)
                yield index, result

    def _stamp(self, path: Path) -> str:
        try:
            status = path.stat()
        except OSError:
            return ""  # reading it says what is wrong
        return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}:{self._settings}"

    def _known(self, work: Work, film: SourceFilm, stamp: str) -> bool:
        return self._vault is not None and stamp != "" and self._vault.holds(
            self._vault.film_name(film.path), work, stamp
        )  # fmt: skip

    def _recalled(self, work: Work, film: SourceFilm, stamp: str) -> Result:
        assert self._vault is not None
        kept = self._vault.answer(self._vault.film_name(film.path), work, stamp)
        assert kept is not None, "nobody else writes into the vault during an import"
        try:
            pixels = b"" if kept.pixels is None else np.frombuffer(kept.pixels, np.float16).astype(np.float32).tobytes()
            return decode_reply(json.loads(kept.answer), lambda: pixels, self._pool.config)
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
            raise self._vault.damaged() from None

    def _deidentified(self, result: Result, film: SourceFilm) -> Result:
        known = self._deidentifier
        if isinstance(result, View):
            result = replace(result, pixels=result.pixels.astype(np.float16).astype(np.float32))
        if film.received:
            return result
        if isinstance(result, FilmRefusedError):
            self._remember(result.patient_id)
            return FilmRefusedError(result, patient_id=known.pseudonym(result.patient_id))
        if isinstance(result, ImagingError):
            return result
        self._remember(result.patient_id)
        return known.film(result) if isinstance(result, Film) else _view(known, result)

    def _remember(self, patient_id: str) -> None:
        if self._vault is not None:
            self._vault.remember(self._deidentifier.pseudonym(patient_id), patient_id)

    def _keep(self, work: Work, film: SourceFilm, stamp: str, result: Result) -> None:
        passing = isinstance(result, ImagingError) and result.reason in _PASSING
        if self._vault is None or stamp == "" or passing:
            return
        values: dict[str, Any]
        if isinstance(result, ImagingError):
            values, pixels = {"error": encode_error(result)}, None
            patient = result.patient_id if isinstance(result, FilmRefusedError) else ""
        else:
            fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "pixels"}
            values, patient = {"film" if isinstance(result, Film) else "view": fields}, result.patient_id
            pixels = result.pixels.astype(np.float16).tobytes() if isinstance(result, View) else None
        answer = Answer(json.dumps(values), pixels)
        self._vault.keep(self._vault.film_name(film.path), work, stamp, answer, patient=patient)


def _view(known: Deidentifier, view: View) -> View:
    """As :meth:`Deidentifier.film`."""
    pseudonym = known.pseudonym(view.patient_id)
    return replace(
        view, patient_id=pseudonym, study_uid=known.uid(view.study_uid), sop_uid=known.uid(view.sop_uid),
        study_date=known.date(pseudonym, view.study_date),
        age_years=None if view.age_years is None else min(view.age_years, float(OLDEST)),
    )  # fmt: skip
