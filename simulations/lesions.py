"""What cancer a simulated woman has and where, for the evaluator's subgroups and for checks of heat maps; no torch.

The generator writes it into `truth.csv` beside the films, public collections into `lesions.csv`. Neither is read for a
site's cohort, the data contract refuses such columns in a clinical table, and no model ever gets it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from client.ingest.pseudonyms import Pseudonyms
from client.trainer.config import SiteConfig
from shared_model.cohort import Cohort, split_indices
from shared_model.errors import ConfigError
from shared_model.lesion_types import LESION_TYPE
from simulations.parties import EVALUATOR, HELD_OUT
from simulations.plan import importer_key

CANCERS = {"mass_malignant": "mass", "calcification_malignant": "calcification"}
Wanted = Callable[[str], bool]


def cancers(source: Path) -> Iterator[dict[str, str]]:
    """Rows of the truth about a folder of synthetic women: every film that shows a cancer.

    Raises:
        ConfigError: the folder has none.
    """
    try:
        with (source / "truth.csv").open(newline="") as stream:
            yield from (row for row in csv.DictReader(stream) if row["kind"] in CANCERS)
    except OSError as error:
        raise ConfigError(f"{source} has no known lesions: {error.strerror}", expected="truth.csv beside dicom/",
                          remedy="name a folder of synthetic women, as `mammofed simulate` caches them"
                          ) from None  # fmt: skip


def lesion_types(source: Path) -> dict[str, str]:
    """Kind of cancer by patient id, of a simulated hospital's folder: what its evaluator knows beyond labels."""
    if (source / "lesions.csv").exists():
        with (source / "lesions.csv").open(newline="", encoding="utf-8") as stream:
            return {row["patient_id"]: row[LESION_TYPE] for row in csv.DictReader(stream)}
    return {row["patient_id"]: CANCERS[row["kind"]] for row in cancers(source)}


def count_women(source: Path, wanted: Wanted) -> int:
    """How many of these women have a cancer that a film shows."""
    return len({row["patient_id"] for row in cancers(source) if wanted(row["patient_id"])})


def unseen_women(run_dir: Path, *, seed: int) -> Wanted:
    """Which patient ids are in the split `test` of a simulated study's evaluator: they neither trained the model nor
    chose it.

    Raises:
        CohortError, ConfigError: the evaluator's cohort or settings cannot be read.
    """
    site = SiteConfig.read(run_dir / "sites" / EVALUATOR / "site.json")
    cohort = Cohort.open(site.cohort)
    test = split_indices(cohort, salt=site.salt, fractions=site.fractions)["test"]
    mine = {cohort.pseudonyms[int(index)] for index in test}
    names = Pseudonyms(importer_key(seed, HELD_OUT))
    return lambda patient_id: names.of(patient_id) in mine
