"""All sites' women in one cohort, as a study without a federation would have them; made once, beside the sites'.

Only a simulator can do this: in a federation no party ever sees two sites' women.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from shared_model.cohort import VIEWS, Cohort, CohortWriter
from simulations.baselines.jobs import POOLED_SITE


def pool_cohorts(sources: Sequence[Path], destination: Path) -> Path:
    """Write the union of prepared cohorts to `destination`, or find it there.

    Splits depend on pseudonym and salt alone, so that a woman is in the same split here as at her site. Two women of
    different sites with one pseudonym (64 bits of a keyed hash) would be refused by the writer.

    Raises:
        CohortError, StorageError: a source is damaged, or the disk refuses.
    """
    if (destination / "cohort.json").exists():
        return destination
    cohorts = [Cohort.open(path) for path in sources]
    first = cohorts[0]
    order = sorted((name, k, row) for k, cohort in enumerate(cohorts) for row, name in enumerate(cohort.pseudonyms))
    with CohortWriter(
        destination, site=POOLED_SITE, contract_sha256=first.contract_sha256, pipeline_sha256=first.pipeline_sha256,
        height=first.height, width=first.width, n_features=first.n_features,
    ) as writer:  # fmt: skip
        for name, k, row in order:
            cohort = cohorts[k]
            films = cohort.batch([row]).pixels_BVCHW[0].numpy()
            views = {view: films[v] for v, view in enumerate(VIEWS) if cohort.view_index[row, v] >= 0}
            stated = cohort.attributes.drop(columns="views").iloc[row]  # views are counted, not stated
            attributes = {str(key): value for key, value in stated.items() if pd.notna(value)}
            table = cohort.clinical[row] if cohort.clinical_mask[row] else None
            writer.add(name, views, table, int(cohort.labels[row]), attributes)
    return destination
