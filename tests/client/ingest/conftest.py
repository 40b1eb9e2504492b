"""Fixtures of the ingest tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from shared_model.imaging import PipelineConfig


@pytest.fixture(scope="session")
def films() -> ModuleType:
    """The module tests/films.py, which writes small DICOM mammograms."""
    path = Path(__file__).resolve().parents[2] / "films.py"
    spec = importlib.util.spec_from_file_location("films", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config() -> PipelineConfig:
    """A small canvas of 1.75 mm pixels."""
    return PipelineConfig(
        height=112, width=84, spacing_mm=1.75, percentiles=(2.0, 99.5), denoise="none", max_pixels=20_000_000,
        max_bytes=64 << 20,
    )  # fmt: skip
