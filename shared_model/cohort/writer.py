"""Writes a prepared cohort: films go straight to disk, everything becomes visible at once. Called by the importer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shared_model.cohort.admission import (
    Attributes,
    check_identity,
    checked_attributes,
    checked_clinical,
    checked_pixels,
    naming,
)
from shared_model.cohort.cohort import Cohort
from shared_model.cohort.layout import (
    HEADER_BYTES,
    MANIFEST,
    PATIENTS,
    PIXELS,
    FileEntry,
    Manifest,
    Terms,
    canonical,
    content_digest,
    npy_header,
    patient_digest,
)
from shared_model.cohort.views import VIEWS
from shared_model.errors import CohortError, StorageError
from shared_model.private_files import sync_folder

_FILES = frozenset({PIXELS, PATIENTS, MANIFEST, "view_index.npy", "clinical.npy", "clinical_mask.npy", "labels.npy"})


@dataclass(frozen=True)
class _Row:
    """One patient while the cohort is written: everything but the pixels, which are on disk already."""

    views: tuple[int, ...]
    clinical: NDArray[np.float32] | None
    label: int
    attributes: dict[str, str | float]
    digest: bytes


class CohortWriter:
    """Context manager that builds a cohort beside `destination` and puts it there when the block ends without error.

    Memory holds no pixels: it grows by about a kilobyte a patient. Whatever goes wrong, `destination` is either what it
    was before or the whole new cohort, and the half-written folder is removed; only a killed process leaves one behind,
    named `.<destination>.partial-*` and safe to delete.

    Args:
        destination: folder that must not exist yet (an empty one will do).
        site: name of the hospital as in the protocol.
        contract_sha256, pipeline_sha256: what the patients were prepared by.
        height, width: of a view in pixels. n_features: F.
        replace: put a newer preparation in the place of an older one; trainers that hold the old one open keep it. An
            older one of the same content, whole on the disk, stays as it is (`unchanged` is then True).

    >>> with CohortWriter(path, site="a", contract_sha256=c, pipeline_sha256=p, height=112, width=84,
    ...                   n_features=42) as writer:                                            # doctest: +SKIP
    ...     writer.add("0f3a", {"L_CC": pixels_CHW}, clinical_F, 1, {"vendor": "A"})
    """

    def __init__(
        self,
        destination: Path,
        *,
        site: str,
        contract_sha256: str,
        pipeline_sha256: str,
        height: int,
        width: int,
        n_features: int,
        replace: bool = False,
    ) -> None:
        self.destination = Path(destination)
        self.content_sha256: str | None = None
        self.unchanged = False
        self._terms = Terms(contract_sha256, pipeline_sha256, height, width, n_features)
        self._site, self._replace = site, replace
        self._rows: dict[str, _Row] = {}
        self._n_views = 0
        self._pixels: IO[bytes] | None = None
        self._partial = self.destination.with_name(f".{self.destination.name}.partial-{secrets.token_hex(4)}")
        self._manifest(1, 0, "0" * 64, {})  # wrong terms are found before the first film is decoded

    def __enter__(self) -> CohortWriter:
        if not self._replace and self.destination.exists() and not _is_empty(self.destination):
            raise CohortError(
                f"{self.destination} exists already", expected="a new folder",
                remedy="choose another folder, or ask for the old cohort to be replaced",
            )  # fmt: skip
        if self._replace and not _is_replaceable(self.destination):
            raise CohortError(
                f"{self.destination} holds other things than a cohort, which would be lost",
                expected="a cohort's folder", remedy="choose another folder for the cohort",
            )  # fmt: skip
        try:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(mode=0o750)  # the importer writes, the trainer reads as a member of its group
            self._pixels = (self._partial / PIXELS).open("wb", buffering=1 << 20)
            self._pixels.write(b"\0" * HEADER_BYTES)
        except OSError as error:
            self._discard()
            raise self._storage(error) from error
        return self

    def add(
        self,
        pseudonym: str,
        views: Mapping[str, NDArray[np.float32]],
        clinical: NDArray[np.float32] | None,
        label: int,
        attributes: Attributes,
    ) -> None:
        """Adds one patient; nothing of her is written when she is refused, and the writer stays usable.

        Args:
            pseudonym: letters, digits, - and _; new in this cohort.
            views: name in `VIEWS` -> pixels [2, H, W] in [0, 1]; kept as float16 (steps of at most 0.0005).
            clinical: [F] as encoded by the contract, None without a clinical row.
            label: 0 or 1.
            attributes: for subgroups, never for the model: text of at most 64 signs, finite number or None.

        Raises:
            CohortError: something about the patient is not as above, or she is in the cohort already.
            StorageError: the disk is full or fails; the whole cohort is given up.
        """
        if self._pixels is None:
            raise CohortError("the cohort writer is not open", remedy="use it in a `with` block")
        where = naming(len(self._rows) + 1, pseudonym)
        check_identity(where, pseudonym, views, label)
        self._check_new(where, pseudonym)
        clinical_F = None if clinical is None else checked_clinical(where, clinical, self._terms.n_features)
        kept = checked_attributes(where, attributes)
        size = {"height": self._terms.height, "width": self._terms.width}
        films = {name: checked_pixels(where, name, views[name], **size) for name in VIEWS if name in views}
        if not films and clinical_F is None:
            raise CohortError(f"{where} has neither a view nor a clinical row", remedy="quarantine her for that")
        rows, digests = self._append(films)
        digest = patient_digest(
            pseudonym=pseudonym, label=label, clinical=clinical_F, attributes=kept, view_digests=digests
        )
        self._rows[pseudonym] = _Row(rows, clinical_F, int(label), kept, digest)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._publish()
        except OSError as fault:
            raise self._storage(fault) from fault
        finally:
            self._discard()

    def _append(self, films: Mapping[str, bytes]) -> tuple[tuple[int, ...], dict[str, str]]:
        """Writes one patient's films; returns her row of the view index, and view -> hex SHA-256."""
        assert self._pixels is not None
        rows, digests = [-1] * len(VIEWS), {}
        try:
            for name, data in films.items():
                self._pixels.write(data)
                rows[VIEWS.index(name)] = self._n_views
                self._n_views += 1
                digests[name] = hashlib.sha256(data).hexdigest()
        except OSError as error:
            self._discard()
            raise self._storage(error) from error
        return tuple(rows), digests

    def _check_new(self, where: str, pseudonym: str) -> None:
        if pseudonym in self._rows:
            raise CohortError(
                f"{where} is in the cohort already, as patient {list(self._rows).index(pseudonym) + 1}",
                expected="each patient once: she is the unit of privacy, and twice in the cohort she has half of it",
                remedy="join her exams and rows before adding her",
            )

    def _manifest(self, n_patients: int, n_positives: int, content: str, files: dict[str, FileEntry]) -> Manifest:
        try:
            return Manifest(
                schema_version=1, site=self._site, **asdict(self._terms), n_patients=n_patients, n_views=self._n_views,
                n_positives=n_positives, content_sha256=content, files=files,
            )  # fmt: skip
        except ValidationError as error:
            faults = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors(include_url=False))
            raise CohortError(f"the cohort cannot be described: {faults}", remedy="correct the named terms") from None

    def _publish(self) -> None:
        if self._pixels is None:
            raise CohortError("the cohort was given up after an error", remedy="start again once its cause is removed")
        if not self._rows:
            raise CohortError(
                f"no patient to write to {self.destination}", expected="at least one",
                remedy="look at the importer's report: every patient was quarantined or the source is empty",
            )  # fmt: skip
        names = sorted(self._rows)
        rows = [self._rows[name] for name in names]
        content = content_digest(self._terms, [row.digest for row in rows])
        manifest = self._manifest(len(rows), sum(row.label for row in rows), content, {})
        dtype, shape = manifest.arrays()[PIXELS]
        self._pixels.flush()
        size = os.fstat(self._pixels.fileno()).st_size
        self._pixels.seek(0)
        self._pixels.write(npy_header(dtype, shape))
        self._pixels.flush()
        os.fsync(self._pixels.fileno())
        self._pixels.close()
        files = {PIXELS: FileEntry(bytes=size, sha256=None)}
        for name, data in self._tables(names, rows, manifest).items():
            _write(self._partial / name, data)
            files[name] = FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        _write(self._partial / MANIFEST, manifest.model_copy(update={"files": files}).to_bytes())
        sync_folder(self._partial)
        self.unchanged = self._replace and _holds(self.destination, content)
        if not self.unchanged:
            self._move()
        self.content_sha256 = content

    def _tables(self, names: list[str], rows: list[_Row], manifest: Manifest) -> dict[str, bytes]:
        """Content of every file but pixels and manifest."""
        nothing = np.zeros(self._terms.n_features, dtype="<f4")
        columns: dict[str, list[Any]] = {
            "view_index.npy": [row.views for row in rows],
            "clinical.npy": [nothing if row.clinical is None else row.clinical for row in rows],
            "clinical_mask.npy": [row.clinical is not None for row in rows],
            "labels.npy": [row.label for row in rows],
        }
        arrays = manifest.arrays()
        files = {
            name: npy_header(*arrays[name]) + np.array(values, dtype=arrays[name][0]).tobytes()
            for name, values in columns.items()
        }
        keys = sorted({key for row in rows for key in row.attributes})
        table = {key: [row.attributes.get(key) for row in rows] for key in keys}
        return {**files, PATIENTS: canonical({"pseudonym": names, "attributes": table})}

    def _move(self) -> None:
        """Puts the finished folder in its place by one atomic rename.

        A replacement takes two: killed in the moment between them, the old cohort lies beside as `.<name>.old-*`.
        """
        aside = self.destination.with_name(f".{self.destination.name}.old-{secrets.token_hex(4)}")
        if self._replace and self.destination.exists():
            self.destination.rename(aside)
        try:
            self._partial.rename(self.destination)
        except OSError as error:
            if aside.exists():
                aside.rename(self.destination)
            if self.destination.exists():
                raise CohortError(
                    f"{self.destination} appeared meanwhile", expected="a new folder", remedy="choose another folder"
                ) from error
            raise
        sync_folder(self.destination.parent)
        if aside.exists():
            shutil.rmtree(aside, ignore_errors=True)

    def _discard(self) -> None:
        if self._pixels is not None:
            with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
                self._pixels.close()
            self._pixels = None
        shutil.rmtree(self._partial, ignore_errors=True)

    def _storage(self, error: OSError) -> StorageError:
        return StorageError(
            f"cohort {self.destination} could not be written: {error.strerror or error}",
            remedy="make room or check the disk, then prepare the cohort again; the former one is untouched",
        )


def _holds(path: Path, content_sha256: str) -> bool:
    """Whether a whole, undamaged cohort of that content is there."""
    try:
        cohort = Cohort.open(path)
        if cohort.content_sha256 != content_sha256:
            return False
        cohort.verify()
    except CohortError:
        return False
    return True


def sweep(destination: Path) -> None:
    """Tidy up after writers that were killed: their half-written folders go, and a former cohort that was set aside
    comes back where none is. Only for who knows that nobody writes there now.

    Raises:
        StorageError: the disk refuses; what is left may hold women who objected since.
    """
    try:
        beside = list(destination.parent.iterdir()) if destination.parent.is_dir() else []
        begins = tuple(f".{destination.name}.{kind}-" for kind in ("old", "partial"))
        left = [p for p in beside if p.name.startswith(begins) and p.is_dir() and not p.is_symlink()]
        for path in sorted(left):
            if ".old-" in path.name and not destination.exists():
                path.rename(destination)
            else:
                shutil.rmtree(path)
    except OSError as error:
        raise StorageError(f"what a killed import left beside {destination} cannot be removed: {error.strerror}",
                           remedy="check the folder's permissions, then import again") from None  # fmt: skip


def _is_replaceable(path: Path) -> bool:
    """Nothing is there, or nothing but files of a cohort: a wrong path must not cost a hospital its films."""
    if path.is_symlink() or not path.is_dir():
        return not path.exists() and not path.is_symlink()
    return {entry.name for entry in path.iterdir()} <= _FILES


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
