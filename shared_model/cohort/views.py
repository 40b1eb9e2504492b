"""Names and order of the four views of an exam; imported wherever views are named, and free of torch."""

from __future__ import annotations

VIEWS: tuple[str, ...] = ("L_CC", "L_MLO", "R_CC", "R_MLO")
"""Laterality and view position (DICOM ImageLaterality, ViewPosition), in the order of axis V everywhere."""
