"""How hard the films are, without training a network: difference-of-Gaussians features and logistic regression.

Called by tests and by whoever tunes `conspicuity`. The feature oracle pins the difficulty of the generator: bright
spots of some millimetres to centimetres that stand out from the texture, the largest over a woman's films and how
much her breasts differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Features = NDArray[np.float64]

SCALES_MM = tuple(0.8 * 1.6**i for i in range(6))  # inner standard deviations: from flecks to large masses
RATIO = 1.6  # of the outer to the inner, close to a Laplacian of a Gaussian (Marr and Hildreth 1980)
QUANTILES = (0.98, 0.998, 1.0)  # of the response inside the breast
MARGIN_MM = 6.0  # rim of the breast that is left out: skin and chest wall


def film_features(film: NDArray[np.float32], *, spacing_mm: float) -> Features:
    """Features [len(SCALES_MM) * len(QUANTILES)] of one film [H, W]: air 0, brighter is denser, either side.

    Each response is divided by its own spread in the breast, so that grey scale and contrast of the detector cancel.
    """
    inside = _largest_part(film > 0)
    depth = gaussian_filter(np.pad(inside, 1).astype(np.float32), MARGIN_MM / spacing_mm / 2)[1:-1, 1:-1]
    core = inside & (depth > 0.9)
    if core.sum() < 50:
        return np.zeros(len(SCALES_MM) * len(QUANTILES))
    image = np.log1p(film / film[core].mean()) * inside
    means = _means_inside(image, inside, spacing_mm)
    features: list[float] = []
    for inner, outer in itertools.pairwise(means):
        response = (inner - outer)[core]
        ranks = [round(q * (response.size - 1)) for q in (0.16, 0.5, *QUANTILES)]
        low, middle, *high = np.partition(response, ranks)[ranks].tolist()
        features += [(value - middle) / (middle - low + 1e-6) for value in high]
    return np.log1p(np.maximum(features, 0.0))


def woman_features(films: Mapping[str, Features]) -> Features:
    """Features of a woman from those of her films by view: largest, mean, difference between her breasts."""
    stack = np.stack(list(films.values()))
    sides = [
        np.stack([f for view, f in films.items() if view[0] == side])
        for side in "LR"
        if any(v[0] == side for v in films)
    ]
    difference = np.abs(sides[0].mean(0) - sides[1].mean(0)) if len(sides) == 2 else np.zeros(stack.shape[1])
    return np.concatenate([stack.max(0), stack.mean(0), difference])


def read_film(path: Path) -> tuple[str, str, NDArray[np.float32], float]:
    """(patient id, view, film with air at 0, spacing in mm) of a generated DICOM file."""
    ds = pydicom.dcmread(path)
    pixels = ds.pixel_array.astype(np.float32)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        pixels = np.float32(2**ds.BitsStored - 1) - pixels
    return str(ds.PatientID), f"{ds.ImageLaterality}_{ds.ViewPosition}", pixels, float(ds.ImagerPixelSpacing[0])


def source_features(source: Path) -> tuple[Features, NDArray[np.int64]]:
    """Features [N, F] and labels [N] of the women of a source folder who have films."""
    films: dict[str, dict[str, Features]] = {}
    for path in sorted((source / "dicom").rglob("*.dcm")):
        patient, view, film, spacing = read_film(path)
        films.setdefault(patient, {})[view] = film_features(film, spacing_mm=spacing)
    table = pd.read_csv(source / "clinical.csv", dtype=str).set_index("patient_id")
    by_patient = table["label"].astype(int).to_dict()
    labels = np.array([by_patient[patient] for patient in films], dtype=np.int64)
    return np.stack([woman_features(views) for views in films.values()]), labels


def cross_validated_auc(features: Features, labels: NDArray[np.int64], *, seed: int) -> float:
    """AUC of logistic regression, women [N, F] in five stratified folds, penalty chosen inside each."""
    logistic = LogisticRegressionCV(
        Cs=6, cv=4, l1_ratios=(0.0,), scoring="neg_log_loss", max_iter=2000, use_legacy_attributes=False
    )
    model = make_pipeline(StandardScaler(), logistic)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, scores))


def clinical_features(sources: Sequence[Path]) -> tuple[Features, NDArray[np.int64]]:
    """Table of all women as a logistic model takes it: numbers with median filled in, levels one-hot, missing flags."""
    table = pd.concat([pd.read_csv(s / "clinical.csv", dtype=str, keep_default_na=False) for s in sources]).fillna("")
    labels = table["label"].to_numpy(np.int64)
    columns: list[NDArray[np.float64]] = []
    for name in table.columns[3:]:
        text = table[name]
        numbers = pd.to_numeric(text, errors="coerce")
        columns.append(np.asarray(text == "", dtype=float))
        if numbers.notna().any():
            columns.append(numbers.fillna(numbers.median()).to_numpy(float))
        columns += [(text == level).to_numpy(float) for level in sorted(set(text[numbers.isna()]) - {""})]
    return np.stack(columns, axis=1), labels


def _means_inside(
    image: NDArray[np.float32], inside: NDArray[np.bool_], spacing_mm: float
) -> list[NDArray[np.float32]]:
    """Gaussian means of the breast alone (air does not count), one for each scale and the last one's outer."""
    spectra = [scipy.fft.rfft2(part) for part in (image, inside.astype(np.float32))]
    means = []
    for gaussian in _gaussians(image.shape, spacing_mm):
        total, weight = (scipy.fft.irfft2(spectrum * gaussian, s=image.shape) for spectrum in spectra)
        means.append(np.asarray(total / np.maximum(weight, 1e-3), dtype=np.float32))
    return means


@lru_cache(maxsize=16)
def _gaussians(shape: tuple[int, int], spacing_mm: float) -> tuple[NDArray[np.float32], ...]:
    """Transfer functions of the Gaussians; a film is periodic here, but its far side is air."""
    fy = scipy.fft.fftfreq(shape[0], spacing_mm)[:, None]
    fx = scipy.fft.rfftfreq(shape[1], spacing_mm)[None, :]
    sigmas = (*SCALES_MM, SCALES_MM[-1] * RATIO)
    return tuple(np.exp(-2 * (np.pi * s) ** 2 * (fy * fy + fx * fx)).astype(np.float32) for s in sigmas)


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, count = label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())
