"""Films encoded once, for phases that leave the view encoder as it is; kept by the trainer, for rounds and evaluation.

A phase of scope `features` trains on the encoder's descriptors: a step then costs what the small layers behind it
cost, some hundred times less. A descriptor is a function of one film and of weights that
everybody has, so that one patient is still one patient. Letters: N patients, V views, D width of a descriptor.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.engines import ONE_SIZE, filled
from shared_model.cohort import VIEWS
from shared_model.cohort.batch import PatientBatch
from shared_model.fusion import FusionModel

PASS = 64  # patients encoded at a time at most where passes have one size
KEPT = 4  # encoders whose descriptors stay in memory: the study's own, the initial one, and those of a second study

Indices = Sequence[int] | NDArray[np.integer[Any]]


class Films(Interface):
    """What encoding needs of a prepared cohort."""

    @property
    def labels(self) -> NDArray[np.uint8]:
        """0 or 1 per patient."""
        ...

    def batch(self, indices: Indices) -> PatientBatch:
        """Tensors of the patients at these positions."""
        ...

    def rows(self, indices: Indices) -> PatientBatch:
        """The same without pixels, [B, V, 0, 0, 0]."""
        ...


class EncodedCohort:
    """A cohort whose films are descriptors, [B, V, D, 1, 1] in place of pixels; stands where the cohort stands.

    Args:
        cohort: labels, clinical rows and which views there are.
        encoded_NVD: descriptors of the patients that were encoded, zeros for the others.
    """

    def __init__(self, cohort: Films, encoded_NVD: Tensor) -> None:
        self._cohort, self._encoded_NVD = cohort, encoded_NVD

    @property
    def labels(self) -> NDArray[np.uint8]:
        """0 or 1 per patient."""
        return self._cohort.labels

    def batch(self, indices: Indices) -> PatientBatch:
        """The patients at these positions."""
        rows = self._cohort.rows(indices)
        chosen = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return replace(rows, pixels_BVCHW=self._encoded_NVD[chosen].unsqueeze(-1).unsqueeze(-1))


class TableOnly:
    """A cohort seen without its films, as descriptors of none: for phases that train the table's branch alone."""

    def __init__(self, cohort: Films, width: int) -> None:
        self._cohort, self._width = cohort, width

    @property
    def labels(self) -> NDArray[np.uint8]:
        """0 or 1 per patient."""
        return self._cohort.labels

    def batch(self, indices: Indices) -> PatientBatch:
        """The patients at these positions."""
        rows = self._cohort.rows(indices)
        empty = torch.zeros(len(rows), len(VIEWS), self._width, 1, 1)
        return replace(rows, pixels_BVCHW=empty, view_mask_BV=torch.zeros_like(rows.view_mask_BV))


class FeatureCache:
    """Descriptors of one cohort under the encoders that were used last.

    Args:
        cohort: the site's.
        load_bytes: pixels in memory at a time while films are encoded.
    """

    def __init__(self, cohort: Films, *, load_bytes: int) -> None:
        self._cohort, self._load_bytes = cohort, load_bytes
        self._kept: OrderedDict[str, tuple[Tensor, set[int]]] = OrderedDict()

    def encoded(self, model: FusionModel, indices: NDArray[np.int64], *, device: torch.device) -> EncodedCohort:
        """The cohort with the films of the patients at `indices` encoded by the model's view encoder, which is run only
        for those that it has not seen."""
        key = _identity(model)
        table_NVD, known = self._kept.get(key) or (
            torch.zeros(len(self._cohort.labels), len(VIEWS), model.config.spec.embedding), set[int]()
        )
        missing = np.array([i for i in indices.tolist() if i not in known], dtype=np.int64)
        self._encode(model, missing, table_NVD, device)
        known |= set(missing.tolist())
        self._kept[key] = table_NVD, known
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return EncodedCohort(self._cohort, table_NVD)

    def _encode(self, model: FusionModel, missing: NDArray[np.int64], table_NVD: Tensor, device: torch.device) -> None:
        pixels = 4 * len(VIEWS) * 2 * model.config.height * model.config.width
        size, one_size = max(1, self._load_bytes // pixels), device.type in ONE_SIZE
        if one_size:
            size = min(size, PASS)
        training = model.training
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(missing), size):
                part = missing[start : start + size]
                batch = self._cohort.batch(part).to(device)
                there_BV = batch.view_mask_BV
                if one_size:  # a film that is missing is encoded too, and dropped
                    batch = batch.select(filled(torch.arange(len(part), device=device), size))
                    all_BV = torch.ones_like(batch.view_mask_BV)
                    encoded_BVD = model.encode(batch.pixels_BVCHW, all_BV)[: len(part)] * there_BV.unsqueeze(2)
                else:
                    encoded_BVD = model.encode(batch.pixels_BVCHW, there_BV)
                table_NVD[torch.from_numpy(part)] = encoded_BVD.float().cpu()
        model.train(training)


def _identity(model: FusionModel) -> str:
    """Hex SHA-256 of the view encoder's weights."""
    digest = hashlib.sha256()
    for name, parameter in model.encoder.named_parameters():
        digest.update(f"{name}:{tuple(parameter.shape)};".encode())
        digest.update(parameter.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
