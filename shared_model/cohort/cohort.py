"""Reads a prepared cohort: checks it, maps its pixels, hands out batches of patients. Used by trainer and evaluator.

Letters: N patients, M views that exist, B patients in a batch, V = 4 views, C = 2 channels, H W pixels, F features.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shared_model.cohort.layout import (
    CHANNELS,
    HEADER_BYTES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PATIENTS,
    PIXELS,
    SCHEMA_VERSION,
    Manifest,
    array_bytes,
    content_digest,
    digest_of,
    npy_header,
    patient_digest,
)
from shared_model.cohort.others import Other, read_others
from shared_model.cohort.views import VIEWS
from shared_model.errors import CohortError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from shared_model.cohort.batch import PatientBatch

_AGAIN = "prepare the cohort again from its source"


class Cohort:
    """A prepared cohort, read-only. Open it with :meth:`open`.

    site, content_sha256, contract_sha256, pipeline_sha256, height, width, n_features: as in its manifest.
    labels: uint8 [N]. view_index: int32 [N, V], -1 where missing. clinical: float32 [N, F]. clinical_mask: bool [N].
    """

    def __init__(self, path: Path, manifest: Manifest, files: dict[str, bytes], pixels: NDArray[np.float16]) -> None:
        self.path, self.manifest = path, manifest
        self.site, self.content_sha256 = manifest.site, manifest.content_sha256
        self.contract_sha256, self.pipeline_sha256 = manifest.contract_sha256, manifest.pipeline_sha256
        self.height, self.width, self.n_features = manifest.height, manifest.width, manifest.n_features
        arrays = {name: _array(files[name], *form) for name, form in manifest.arrays().items() if name != PIXELS}
        self.view_index = cast(NDArray[np.int32], arrays["view_index.npy"])
        self.clinical = cast(NDArray[np.float32], arrays["clinical.npy"])
        self.clinical_mask = cast(NDArray[np.bool_], arrays["clinical_mask.npy"])
        self.labels = cast(NDArray[np.uint8], arrays["labels.npy"])
        self._patients = files[PATIENTS]
        self._pixels_MCHW = pixels

    @classmethod
    def open(cls, path: Path | str) -> Cohort:
        """Opens a cohort in milliseconds: every file's size and header and every hash but that of the pixels is checked
        before anything is mapped; the pixels' hash is left to :meth:`verify`.

        Raises:
            CohortError: the folder is no cohort, of another schema, truncated or damaged; says what to do.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        if set(manifest.files) != {*manifest.arrays(), PATIENTS}:
            raise CohortError(f"{folder / MANIFEST} lists other files than a cohort has", remedy=_AGAIN)
        files = {name: _read_checked(folder, name, manifest) for name in manifest.files if name != PIXELS}
        cohort = cls(folder, manifest, files, _map_pixels(folder, manifest))
        cohort._check_rows()
        return cohort

    def __len__(self) -> int:
        return self.manifest.n_patients

    @cached_property
    def pseudonyms(self) -> tuple[str, ...]:
        """N pseudonyms in ascending order, row by row."""
        return tuple(self._table[0])

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Which attributes were stated of the patients, without `views`."""
        return tuple(self._table[1])

    @cached_property
    def attributes(self) -> pd.DataFrame:
        """N rows of attributes for subgroups (vendor, age, density...), indexed by pseudonym; never a model input.
        `views` is counted here: how many of a patient's views there are, as text."""
        import pandas as pd  # half a second that a trainer does not need

        views = [str(n) for n in (self.view_index >= 0).sum(axis=1).tolist()]
        return pd.DataFrame(self._table[1] | {"views": views}, index=pd.Index(self.pseudonyms, name="pseudonym"))

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> PatientBatch:
        """The patients at these positions, in this order, as float32 tensors of their own (B may be 0).

        The hot path of training: one fused copy-and-convert a view straight from the mapped file into the batch.

        Raises:
            CohortError: a position is no integer or outside 0..N-1.
        """
        import torch  # a reader of tables and splits needs no torch

        rows_B = self._checked_indices(indices)
        index_BV = self.view_index[rows_B]
        shape = (CHANNELS, self.height, self.width)
        pixels = torch.empty((index_BV.size, *shape), dtype=torch.float32)
        source_MCHW = self._pixel_tensor
        for view_CHW, row in zip(pixels.unbind(0), index_BV.ravel().tolist(), strict=True):
            if row < 0:
                view_CHW.zero_()
            else:
                view_CHW.copy_(source_MCHW[row])
        return self._patients_at(rows_B, pixels.view(len(rows_B), len(VIEWS), *shape))

    def rows(self, indices: Sequence[int] | NDArray[np.integer]) -> PatientBatch:
        """The same patients without their pixels, whose tensor is empty, [B, V, 0, 0, 0]."""
        import torch

        rows_B = self._checked_indices(indices)
        return self._patients_at(rows_B, torch.empty((len(rows_B), len(VIEWS), 0, 0, 0)))

    def _patients_at(self, rows_B: NDArray[np.int64], pixels_BVCHW: Tensor) -> PatientBatch:
        import torch

        from shared_model.cohort.batch import OtherInput, PatientBatch

        return PatientBatch(
            pixels_BVCHW=pixels_BVCHW,
            view_mask_BV=torch.from_numpy(self.view_index[rows_B] >= 0),
            clinical_BF=torch.from_numpy(self.clinical[rows_B]),
            clinical_mask_B=torch.from_numpy(self.clinical_mask[rows_B]),
            labels_B=torch.from_numpy(self.labels[rows_B].astype(np.float32)),
            others={name: OtherInput(torch.from_numpy(other.values[rows_B]), torch.from_numpy(other.mask[rows_B]))
                    for name, other in self.others.items()},
        )  # fmt: skip

    @property
    def others(self) -> dict[str, Other]:
        """Further modalities that the site has of these patients, by name; see `shared_model.cohort.others`."""
        return self._others[0]

    def require_others(self, names: Sequence[str]) -> None:
        """Checks what a study names beside films and table; a site may have none of it.

        Raises:
            CohortError: a file of it is damaged, or of another import.
        """
        for name in names:
            if name in self._others[1]:
                raise self._others[1][name]

    @cached_property
    def _others(self) -> tuple[dict[str, Other], dict[str, CohortError]]:
        return read_others(self)

    def require(self, *, contract_sha256: str, pipeline_sha256: str) -> None:
        """Checks that the cohort was prepared by the contract and the pipeline that a study names.

        Raises:
            CohortError: it was not.
        """
        for what, mine, asked in (
            ("data contract", self.contract_sha256, contract_sha256),
            ("imaging pipeline", self.pipeline_sha256, pipeline_sha256),
        ):
            if mine != asked:
                raise CohortError(
                    f"cohort {self.path} was prepared by another {what} than the study's", found=mine, expected=asked,
                    remedy="prepare the cohort again with the release and the settings of the study",
                )  # fmt: skip

    def verify(self) -> None:
        """Recomputes the content hash from every byte, pixels included (some seconds a thousand patients).

        Raises:
            CohortError: the content is not what the manifest says.
        """
        attributes = self._table[1]
        patients = []
        for row, pseudonym in enumerate(self.pseudonyms):
            views = {
                name: hashlib.sha256(self._pixels_MCHW[at].tobytes()).hexdigest()
                for name, at in zip(VIEWS, self.view_index[row].tolist(), strict=True)
                if at >= 0
            }
            stated = {name: value for name, column in attributes.items() if (value := column[row]) is not None}
            patients.append(patient_digest(
                pseudonym=pseudonym, label=int(self.labels[row]), attributes=stated, view_digests=views,
                clinical=self.clinical[row] if self.clinical_mask[row] else None,
            ))  # fmt: skip
        found = content_digest(self.manifest.terms, patients)
        if found != self.content_sha256:
            raise CohortError(
                f"cohort {self.path} is damaged", found=found, expected=self.content_sha256, remedy=_AGAIN
            )

    @cached_property
    def _pixel_tensor(self) -> Tensor:
        import torch

        return torch.from_numpy(self._pixels_MCHW)

    @cached_property
    def _table(self) -> tuple[list[str], dict[str, list[str | float | None]]]:
        """Pseudonyms and attribute columns, read when first needed."""
        try:
            values = json.loads(self._patients)
            names, columns = values["pseudonym"], values["attributes"]
            lengths = {len(names), *(len(column) for column in columns.values())}
            if lengths != {len(self)} or names != sorted(set(names)):
                raise ValueError("columns of different lengths, or pseudonyms that are not ascending and unique")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CohortError(f"{self.path / PATIENTS} is damaged: {error}", remedy=_AGAIN) from None
        return names, columns

    def _checked_indices(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        rows_B = np.asarray(indices)
        if rows_B.size == 0:
            return np.zeros(0, dtype=np.int64)
        if rows_B.ndim != 1 or rows_B.dtype.kind not in "iu" or rows_B.min() < 0 or rows_B.max() >= len(self):
            raise CohortError(
                "a batch asks for patients that are not there", expected=f"a list of integers in 0..{len(self) - 1}"
            )
        return rows_B.astype(np.int64)

    def _check_rows(self) -> None:
        """What hashes cannot say of a cohort that another program wrote: every value is one that it may be."""
        used = np.sort(self.view_index[self.view_index >= 0], axis=None)
        faults = {
            "labels other than 0 and 1": self.labels.max() > 1 or int(self.labels.sum()) != self.manifest.n_positives,
            "a clinical mask other than 0 and 1": self.clinical_mask.view(np.uint8).max() > 1,
            "clinical values that are no numbers": not np.isfinite(self.clinical).all(),
            "clinical values where there is no clinical row": bool(self.clinical[~self.clinical_mask].any()),
            "views that do not belong to exactly one patient": self.view_index.min() < -1
            or not np.array_equal(used, np.arange(self.manifest.n_views)),
        }
        if wrong := [fault for fault, holds in faults.items() if holds]:
            raise CohortError(f"cohort {self.path} holds {', '.join(wrong)}", remedy=_AGAIN)


def _array(data: bytes, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    return np.frombuffer(data, dtype=dtype, offset=HEADER_BYTES).reshape(shape)


def _read_manifest(folder: Path) -> Manifest:
    data = _read(folder, MANIFEST, limit=MAX_MANIFEST_BYTES)
    path = folder / MANIFEST
    try:
        envelope = json.loads(data)
        content, stated = envelope["manifest"], envelope["sha256"]
        version = content["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CohortError(f"{path} is no cohort manifest: {type(error).__name__}", remedy=_AGAIN) from None
    if version != SCHEMA_VERSION:
        raise CohortError(
            f"{path}: the cohort has another schema", found=f"version {str(version)[:20]}",
            expected=f"version {SCHEMA_VERSION}", remedy="prepare the cohort again with this release",
        )  # fmt: skip
    if digest_of(content) != stated:
        raise CohortError(f"{path} is damaged: its content does not have the hash that it states", remedy=_AGAIN)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:5])
        raise CohortError(f"{path} is no valid manifest: {faults}", remedy=_AGAIN) from None


def _read_checked(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Content of a small file, after its size, hash and header were found right."""
    entry = manifest.files[name]
    arrays = manifest.arrays()
    if name in arrays and entry.bytes != array_bytes(*arrays[name]):
        raise CohortError(f"{folder / MANIFEST}: the size of {name} contradicts the number of patients", remedy=_AGAIN)
    data = _read(folder, name, limit=entry.bytes)
    if len(data) != entry.bytes:
        raise _truncated(folder / name, len(data), entry.bytes)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CohortError(f"{folder / name} is damaged: its hash is not the manifest's", remedy=_AGAIN)
    if name in arrays and data[:HEADER_BYTES] != npy_header(*arrays[name]):
        raise CohortError(f"{folder / name} has another type or shape than the manifest says", remedy=_AGAIN)
    return data


def _map_pixels(folder: Path, manifest: Manifest) -> NDArray[np.float16]:
    """Maps the pixels copy-on-write: torch wants a writable array, and what it might write never reaches the disk."""
    dtype, shape = manifest.arrays()[PIXELS]
    expected = array_bytes(dtype, shape)
    path = folder / PIXELS
    with _open(path) as file:
        found = os.fstat(file.fileno()).st_size
        if found != expected or manifest.files[PIXELS].bytes != expected:
            raise _truncated(path, found, expected)
        if file.read(HEADER_BYTES) != npy_header(dtype, shape):
            raise CohortError(f"{path} has another type or shape than the manifest says", remedy=_AGAIN)
        if manifest.n_views == 0:
            return np.zeros(shape, dtype=np.float16)  # nothing can be mapped from an empty file
        return np.memmap(file, dtype=np.float16, mode="c", offset=HEADER_BYTES, shape=shape)


def _read(folder: Path, name: str, *, limit: int) -> bytes:
    """At most limit + 1 bytes of a regular file."""
    with _open(folder / name) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise CohortError(f"{folder / name} is too large", expected=f"at most {limit} bytes", remedy=_AGAIN)
        return file.read(limit + 1)


def _truncated(path: Path, found: int, expected: int) -> CohortError:
    return CohortError(
        f"{path} is truncated or of another cohort", found=f"{found} bytes", expected=f"{expected} bytes", remedy=_AGAIN
    )


def _open(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: a pipe would wait for a writer for ever
            raise CohortError(f"{path} is no regular file", remedy=_AGAIN)
        return path.open("rb")
    except OSError as error:
        raise CohortError(
            f"{path} cannot be read: {error.strerror}", expected="a prepared cohort",
            remedy=f"check the path, or {_AGAIN}",
        ) from None  # fmt: skip
