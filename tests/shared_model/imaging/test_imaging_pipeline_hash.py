"""The pipeline's hash stands for what it does to pixels."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from shared_model.imaging import PIPELINE_VERSION, PipelineConfig, prepare_view
from shared_model.protocol import PipelineTerms


def test_hash_covers_what_decides_pixels_and_not_the_limits(config: PipelineConfig) -> None:
    changes: list[dict] = [
        {"height": 113}, {"width": 85}, {"spacing_mm": 1.5}, {"percentiles": (1.0, 99.0)}, {"denoise": "median"},
    ]  # fmt: skip
    hashes = {replace(config, **change).sha256 for change in changes} | {config.sha256}
    assert len(hashes) == 6
    assert replace(config, max_pixels=4096, max_bytes=4096).sha256 == config.sha256
    assert replace(config, percentiles=[2, 99.5]).sha256 == config.sha256  # type: ignore[arg-type]  # as YAML gives it
    terms = PipelineTerms.model_validate(config.terms())
    assert (terms.sha256, terms.height, terms.width, terms.spacing_mm) == (config.sha256, 112, 84, 1.75)


@pytest.mark.parametrize(
    ("syntax", "expected"),
    [("explicit", "32ba5066dd5eb106aca976020bea09c3"), ("jpeg_2000", "32ba5066dd5eb106aca976020bea09c3")],
)
def test_the_same_film_gives_the_same_bits_for_ever(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, syntax: str, expected: str
) -> None:
    """If this fails, the pipeline was changed: raise PIPELINE_VERSION, so that cohorts do not mix, then this hash."""
    ds = films.film_dataset(films.breast_film(seed=42))
    ds.WindowCenter, ds.WindowWidth = 2048, 3500
    view = prepare_view(films.write_film(tmp_path / "f.dcm", ds, syntax=syntax), config)
    assert PIPELINE_VERSION == 1
    assert hashlib.sha256(view.pixels.tobytes()).hexdigest()[:32] == expected
