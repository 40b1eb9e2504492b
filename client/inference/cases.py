"""The women of a site's sources as the model takes them, labelled or not; called by predict and explain.

Films and facts come the way of `site import`: the same sources, checks, de-identification and memory, so that a film
that an import would refuse is not scored either. Of each woman the latest exam is taken; no label is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.ingest.exams import admit_films, choose_films
from client.ingest.imports import RememberingNames, Stage, films_of, opened
from client.ingest.joining import join
from client.ingest.quarantine import Quarantine
from client.ingest.reader import FilmReader
from client.ingest.site_file import SiteFile
from client.ingest.table import Row, encode_women
from client.ingest.tables import read_sources
from shared_model.cohort.batch import PatientBatch
from shared_model.cohort.views import VIEWS
from shared_model.contract import Contract
from shared_model.errors import ConfigError, ImagingError
from shared_model.imaging import FilmPool, PipelineConfig, View


@dataclass(frozen=True, kw_only=True)
class Film:
    """One film of a case. path: its file. received: it was fetched and de-identified: its original is at the PACS
    (`originals` finds it). view: as the model took it."""

    path: Path = field(repr=False)
    received: bool
    view: View


@dataclass(frozen=True, kw_only=True)
class Case:
    """One woman to be scored.

    pseudonym, patient_id: keyed, and the hospital's own. exam: shifted day (YYYYMMDD) or "". films: by view.
    features: float32 [F], None without a clinical row. notes: what was set aside of hers, as reasons.
    """

    pseudonym: str
    patient_id: str = field(repr=False)
    exam: str
    films: Mapping[str, Film]
    features: NDArray[np.float32] | None
    notes: tuple[str, ...] = ()

    @property
    def modalities(self) -> str:
        """`both`, `image` or `table`."""
        return "table" if not self.films else "image" if self.features is None else "both"

    @property
    def missing_views(self) -> tuple[str, ...]:
        """Views of the four that there are no films of."""
        return tuple(view for view in VIEWS if view not in self.films)

    def batch(self, pipeline: PipelineConfig, n_features: int) -> PatientBatch:
        """B = 1; the label is 0 and means nothing."""
        pixels = torch.zeros(1, len(VIEWS), 2, pipeline.height, pipeline.width)
        mask = torch.zeros(1, len(VIEWS), dtype=torch.bool)
        for view, film in self.films.items():
            at = VIEWS.index(view)
            pixels[0, at], mask[0, at] = torch.from_numpy(film.view.pixels.copy()), True
        known = self.features is not None
        row = torch.zeros(1, n_features)
        if self.features is not None:
            row[0] = torch.from_numpy(self.features.copy())
        return PatientBatch(pixels, mask, row, torch.tensor([known]), torch.zeros(1))


@dataclass(frozen=True, kw_only=True)
class Cases:
    """All of them, by pseudonym; refused: pseudonym -> reason for women who cannot be scored."""

    cases: tuple[Case, ...]
    refused: Mapping[str, str]


def read_cases(
    site: SiteFile, *, contract: Contract, patients: Collection[str] | None = None, stage: Stage | None = None
) -> Cases:
    """Collect, check, de-identify and prepare; nothing is written but the importer's own memory.

    Args:
        patients: the hospital's ids of the women who are wanted; None: all in the sources.

    Raises:
        ConfigError: a wanted woman is in no source; and as :func:`client.ingest.imports.import_site`.
    """
    show = stage or (lambda _: nullcontext(lambda done, total: None))
    with opened(site) as (vault, deidentifier), ExitStack() as stack:
        wanted = None if patients is None else {deidentifier.pseudonym(patient): patient for patient in patients}
        with show("Read clinical sources"):
            contents = read_sources(site.clinical, contract=contract, identities=RememberingNames(deidentifier, vault))
        sources, _ = films_of(site, vault, deidentifier, show, stack)
        pool = stack.enter_context(FilmPool(
            site.imaging.pipeline(), workers=site.workers or os.cpu_count() or 1, policy=site.film_policy.admission(),
            declared_spacing_mm=site.film_policy.declared_spacing_mm,
        ))  # fmt: skip
        reader, quarantine = FilmReader(pool, deidentifier, vault), Quarantine()
        with show("Read headers"):
            admitted = admit_films(sources, reader=reader, quarantine=quarantine)
        joined = join(admitted.exams, contents, contract=contract, policy=site.clinical_policy, labelled=False)
        table = encode_women(joined, contents, contract=contract, source="the clinical sources")
        barred = dict.fromkeys(vault.excluded(), "excluded")
        found = (admitted.seen | table.rows.keys()) - barred.keys()
        if wanted is not None:
            if absent := [patient for name, patient in wanted.items() if name not in found]:
                raise ConfigError("a patient is in none of the site's sources", found=f"{len(absent)} of {len(wanted)}",
                                  remedy="check the ids; has she objected, or is her film refused "
                                         "(`mammofed site quarantine list`)?")  # fmt: skip
            found &= wanted.keys()
        exams = {name: table.rows[name].exam if name in table.rows else "" for name in found}
        chosen = choose_films(admitted, exams=exams, barred=barred, quarantine=quarantine)
        films: dict[str, dict[str, Film]] = {}
        with show("Decode films") as progress:
            results = reader.run("prepare", [film.source for film in chosen])
            for name, group in groupby(results, key=lambda pair: chosen[pair[0]].pseudonym):
                for index, result in group:
                    progress(index + 1, len(chosen))
                    film = chosen[index]
                    if isinstance(result, ImagingError):
                        quarantine.add_film(film.ordinal, name, result)
                    elif isinstance(result, View):
                        films.setdefault(name, {})[result.view] = Film(
                            path=film.source.path, received=film.source.received, view=result)  # fmt: skip
        ids = {name: vault.patient_of(name) or (wanted or {}).get(name, "") for name in found}
        return _cases(ids, films, table.rows, quarantine)


def _cases(
    ids: Mapping[str, str], films: Mapping[str, Mapping[str, Film]], rows: Mapping[str, Row], quarantine: Quarantine
) -> Cases:
    notes = dict(_notes(quarantine, ids.keys()))
    cases, refused = [], {}
    for name in sorted(ids):
        row = rows.get(name)
        features = row.features if row is not None else None
        if not films.get(name) and features is None:
            refused[name] = next(iter(notes.get(name, ())), "nothing_usable")
            continue
        shown = next(iter(films.get(name, {}).values()), None)
        exam = shown.view.study_date if shown is not None else row.exam if row is not None else ""
        cases.append(Case(pseudonym=name, patient_id=ids[name], exam=exam,
                          films=dict(films.get(name, {})), features=features, notes=notes.get(name, ())))  # fmt: skip
    return Cases(cases=tuple(cases), refused=refused)


def _notes(quarantine: Quarantine, names: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What was set aside of each woman, but for what an older exam explains."""
    usual = {"older_exam", "repeat_view", "no_row", "older_row"}
    found: dict[str, list[str]] = {}
    for entry in quarantine.entries:
        if entry.pseudonym in names and entry.reason not in usual and entry.kind == "film":
            found.setdefault(entry.pseudonym, []).append(entry.reason)
    for name, reasons in found.items():
        yield name, tuple(dict.fromkeys(reasons))
