"""Files of a prepared cohort, byte for byte; shared by the writer and the reader.

A cohort is a folder (N patients, M views that exist, V = 4, C = 2 channels, H W pixels, F clinical features):

    cohort.json         manifest: schema version, hashes of contract and pipeline, sizes, hashes of other files
    pixels.npy          float16 [M, C, H, W] in [0, 1], in order of arrival
    view_index.npy      int32 [N, V], row of `pixels` or -1 where the view is missing
    clinical.npy        float32 [N, F], encoded by the contract, zeros where there is no clinical row
    clinical_mask.npy   bool [N], True where there is a clinical row
    labels.npy          uint8 [N], 0 or 1
    patients.json       {"pseudonym": [N], "attributes": {name: [N]}}; attributes are text, number or null

Rows are in order of pseudonyms. Every .npy file has a header of exactly 128 bytes that follows from dtype and shape, so
a reader can compare it instead of parsing it; numpy opens the files all the same.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shared_model.cohort.views import VIEWS

SCHEMA_VERSION = 1
HEADER_BYTES = 128
CHANNELS = 2
MANIFEST = "cohort.json"
PIXELS = "pixels.npy"
PATIENTS = "patients.json"
MAX_MANIFEST_BYTES = 1 << 16  # it has some 1.5 KB
PSEUDONYM_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Site = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]  # as in the protocol


@dataclass(frozen=True)
class Terms:
    """What all patients of a cohort have in common: how they were prepared, and sizes."""

    contract_sha256: str
    pipeline_sha256: str
    height: int
    width: int
    n_features: int


class FileEntry(BaseModel):
    """Size of a file in bytes and, for all but the pixels, the SHA-256 of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    bytes: int = Field(ge=0, lt=1 << 50)
    sha256: Sha256 | None


class Manifest(BaseModel):
    """Content of `cohort.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    schema_version: Literal[1]
    site: Site
    contract_sha256: Sha256
    pipeline_sha256: Sha256
    height: int = Field(ge=1, le=8192)
    width: int = Field(ge=1, le=8192)
    n_features: int = Field(ge=1, le=4096)
    n_patients: int = Field(ge=1, lt=1 << 31)
    n_views: int = Field(ge=0, lt=1 << 31)
    n_positives: int = Field(ge=0, lt=1 << 31)
    content_sha256: Sha256
    files: dict[str, FileEntry]

    @property
    def terms(self) -> Terms:
        """How the patients were prepared."""
        return Terms(self.contract_sha256, self.pipeline_sha256, self.height, self.width, self.n_features)

    def arrays(self) -> dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]:
        """File name -> dtype and shape that follow from the sizes."""
        n = self.n_patients
        return {
            PIXELS: (np.dtype("<f2"), (self.n_views, CHANNELS, self.height, self.width)),
            "view_index.npy": (np.dtype("<i4"), (n, len(VIEWS))),
            "clinical.npy": (np.dtype("<f4"), (n, self.n_features)),
            "clinical_mask.npy": (np.dtype("?"), (n,)),
            "labels.npy": (np.dtype("u1"), (n,)),
        }

    def to_bytes(self) -> bytes:
        """The file `cohort.json`: the manifest and its own SHA-256, so that no single field can change unseen."""
        content = self.model_dump(mode="json")
        envelope = {"manifest": content, "sha256": digest_of(content)}
        return json.dumps(envelope, indent=1, sort_keys=True).encode() + b"\n"


def digest_of(content: object) -> str:
    """Hex SHA-256 of plain values as canonical JSON."""
    return hashlib.sha256(canonical(content)).hexdigest()


def canonical(content: object) -> bytes:
    """Plain values as JSON with sorted keys and no spaces."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def npy_header(dtype: DTypeLike, shape: Sequence[int]) -> bytes:
    """Header of 128 bytes of a C-ordered .npy file (NumPy format version 1.0, NEP 1)."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    sizes = tuple(int(n) for n in shape)
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {sizes!r}, }}".encode("latin1")
    room = HEADER_BYTES - 10
    assert len(text) < room, "four axes of at most ten digits always fit"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", room) + text.ljust(room - 1) + b"\n"


def array_bytes(dtype: np.dtype[np.generic], shape: Sequence[int]) -> int:
    """Size of the whole .npy file in bytes."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    return HEADER_BYTES + size


def patient_digest(
    *,
    pseudonym: str,
    label: int,
    clinical: NDArray[np.float32] | None,
    attributes: Mapping[str, str | float],
    view_digests: Mapping[str, str],
) -> bytes:
    """SHA-256 of all that the cohort holds of one patient; view_digests: view -> hex SHA-256 of its float16 bytes."""
    content = {
        "pseudonym": pseudonym,
        "label": int(label),
        "clinical": None if clinical is None else hashlib.sha256(clinical.astype("<f4").tobytes()).hexdigest(),
        "attributes": dict(attributes),
        "views": dict(view_digests),
    }
    return hashlib.sha256(canonical(content)).digest()


def content_digest(terms: Terms, patients: Sequence[bytes]) -> str:
    """Hex SHA-256 of a cohort's content: patient digests in order of pseudonyms.

    It depends neither on the order in which patients arrived nor on the site's name, so two preparations of the same
    patients agree and a cohort that is registered under two names shows.
    """
    head = {"schema": SCHEMA_VERSION, "patients": len(patients), **asdict(terms)}
    digest = hashlib.sha256(canonical(head))
    for patient in patients:
        digest.update(patient)
    return digest.hexdigest()
