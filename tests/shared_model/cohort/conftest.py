"""Small cohorts, written by the real writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shared_model.cohort import VIEWS, Cohort, CohortWriter

H, W, F = 6, 4, 5
CONTRACT_SHA, PIPELINE_SHA = "c" * 64, "d" * 64
Patient = dict[str, object]


def writer(path: Path, **changes: object) -> CohortWriter:
    terms: dict[str, object] = {
        "site": "north",
        "contract_sha256": CONTRACT_SHA,
        "pipeline_sha256": PIPELINE_SHA,
        "height": H,
        "width": W,
        "n_features": F,
    }
    return CohortWriter(path, **{**terms, **changes})  # type: ignore[arg-type]


def patient(number: int) -> Patient:
    """Arguments of `CohortWriter.add`, all different: views and table are there or not by the number's digits."""
    rng = np.random.default_rng(number)
    there = [name for k, name in enumerate(VIEWS) if number % 5 != 0 and (number >> k) % 3]
    views = {name: rng.random((2, H, W), dtype=np.float32) for name in there}
    clinical = None if number % 4 == 1 and views else rng.normal(size=F).astype(np.float32)
    return {
        "pseudonym": f"p{(number * 7919) % 10_007:05d}",
        "views": views,
        "clinical": clinical,
        "label": int(number % 3 == 0),
        "attributes": {"vendor": "AB"[number % 2], "age_years": None if number % 6 == 0 else 40.5 + number},
    }


def add(target: CohortWriter, row: Patient) -> None:
    target.add(**row)  # type: ignore[arg-type]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Cohort]:
    """write(patients, name=...) -> the opened cohort."""

    def make(patients: list[Patient], *, name: str = "cohort", **changes: object) -> Cohort:
        with writer(tmp_path / name, **changes) as target:
            for row in patients:
                add(target, row)
        return Cohort.open(tmp_path / name)

    return make


@pytest.fixture
def cohort(write: Callable[..., Cohort]) -> Cohort:
    return write([patient(n) for n in range(24)])


@pytest.fixture
def kit() -> SimpleNamespace:
    """The helpers of this file; test folders are no packages, so tests cannot import it."""
    return SimpleNamespace(
        writer=writer, patient=patient, add=add, H=H, W=W, F=F, CONTRACT_SHA=CONTRACT_SHA, PIPELINE_SHA=PIPELINE_SHA
    )
