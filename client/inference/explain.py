"""From ids to pages: reads the cases, scores, explains, writes; called by `site explain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client.inference.case_report import Explanation, board, explain, page
from client.inference.cases import read_cases
from client.inference.pictures import explained_films
from client.inference.predict import predict
from client.inference.reference import site_reference
from client.inference.scorer import Scorer
from client.ingest.imports import Stage
from client.ingest.site_file import SiteFile
from shared_model.contract import load_contract
from shared_model.errors import ConfigError
from shared_model.explanation import METHODS
from shared_model.private_files import make_private_folder, write_private
from shared_model.released import ReleasedModel

BOARD = "board.html"


def write_pages(
    site: SiteFile, released: ReleasedModel, patients: Sequence[str], out: Path, *, method: str,
    stage: Stage | None = None,
) -> list[Path]:  # fmt: skip
    """One page a woman, named by pseudonym, and `board.html` for several; returns their paths.

    Raises:
        ConfigError: an unknown method, or a patient who is in none of the sources or cannot be scored.
    """
    how = next((known for known in METHODS if known == method), None)
    if how is None:
        raise ConfigError("--method: no such method", found=method, expected=", ".join(METHODS))
    contract = load_contract()
    scorer = Scorer(released, contract)
    pipeline = site.imaging.pipeline()
    scorer.check_pipeline(pipeline)
    found = read_cases(site, contract=contract, patients=patients, stage=stage)
    if found.refused:
        raise ConfigError("a patient cannot be scored", found=dict(found.refused),
                          remedy="`mammofed site quarantine list` says why, and what to do")  # fmt: skip
    reference = site_reference(scorer, site.cohort, site.work / "inference")
    make_private_folder(out)
    explanations: list[Explanation] = []
    paths = []
    for one in predict(scorer, found.cases, pipeline=pipeline, reference=reference):
        films = explained_films(scorer, one.case, pipeline=pipeline, policy=site.film_policy.admission(),
                                declared_spacing_mm=site.film_policy.declared_spacing_mm, method=how)  # fmt: skip
        explanations.append(explain(scorer, one, films, pipeline=pipeline, method=method))
        paths.append(out / f"{one.case.pseudonym}.html")
        write_private(paths[-1], page(explanations[-1], scorer, reference).encode())
    if len(explanations) > 1:
        paths.append(out / BOARD)
        write_private(paths[-1], board(explanations, scorer).encode())
    return paths
