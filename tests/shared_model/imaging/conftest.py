"""Fixtures of the imaging tests."""

from __future__ import annotations

from types import ModuleType

import pytest

from shared_model.imaging import PipelineConfig
from tests import films as module


@pytest.fixture(scope="session")
def films() -> ModuleType:
    """The module tests/films.py, which writes small DICOM mammograms."""
    return module


@pytest.fixture
def config() -> PipelineConfig:
    """A small canvas of 1.75 mm pixels."""
    return PipelineConfig(
        height=112, width=84, spacing_mm=1.75, percentiles=(2.0, 99.5), denoise="none", max_pixels=20_000_000,
        max_bytes=64 << 20,
    )  # fmt: skip
