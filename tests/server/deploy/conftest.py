"""Processes die in these tests and machines do not, so nothing has to reach a disk that may be slow."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
