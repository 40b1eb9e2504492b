"""Opening a cohort: damage, truncation and foreign folders are refused; batches are what the files say."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_model import imaging
from shared_model.cohort import VIEWS, Cohort
from shared_model.cohort.batch import VIEWS as BATCH_VIEWS
from shared_model.cohort.layout import HEADER_BYTES, digest_of, npy_header
from shared_model.errors import CohortError

FILES = ["pixels.npy", "view_index.npy", "clinical.npy", "clinical_mask.npy", "labels.npy", "patients.json"]


def resign(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest and gives it the hash of its new content, as a foreign or hostile writer would."""
    path = folder / "cohort.json"
    envelope = json.loads(path.read_text())
    change(envelope["manifest"])
    envelope["sha256"] = digest_of(envelope["manifest"])
    path.write_text(json.dumps(envelope))


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replaces a file and its hash and size in the manifest."""
    import hashlib

    (folder / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    resign(folder, lambda manifest: manifest["files"].update({name: entry}))


def refuse(folder: Path, message: str) -> str:
    with pytest.raises(CohortError, match=message) as caught:
        Cohort.open(folder)
    text = str(caught.value)
    assert str(folder) in text and "to do:" in text
    return text


# --- batches


def test_a_batch_has_the_declared_types_and_shapes(kit: Any, cohort: Cohort) -> None:
    batch = cohort.batch([5, 3, 3])
    assert batch.pixels_BVCHW.shape == (3, 4, 2, kit.H, kit.W) and batch.pixels_BVCHW.dtype == torch.float32
    assert batch.view_mask_BV.shape == (3, 4) and batch.view_mask_BV.dtype == torch.bool
    assert batch.clinical_BF.shape == (3, kit.F) and batch.clinical_BF.dtype == torch.float32
    assert batch.clinical_mask_B.shape == (3,) and batch.clinical_mask_B.dtype == torch.bool
    assert batch.labels_B.shape == (3,) and batch.labels_B.dtype == torch.float32
    assert torch.equal(batch.pixels_BVCHW[1], batch.pixels_BVCHW[2])


def test_a_batch_equals_the_plain_gather(cohort: Cohort) -> None:
    pixels = np.load(cohort.path / "pixels.npy")
    order = np.random.default_rng(3).permutation(len(cohort))
    batch = cohort.batch(order)
    expected = np.zeros(batch.pixels_BVCHW.shape, np.float32)
    index = cohort.view_index[order]
    expected[index >= 0] = pixels[index[index >= 0]]
    assert np.array_equal(batch.pixels_BVCHW.numpy(), expected)
    assert np.array_equal(batch.view_mask_BV.numpy(), index >= 0)
    assert np.array_equal(batch.labels_B.numpy(), cohort.labels[order])
    assert np.array_equal(batch.clinical_BF.numpy(), cohort.clinical[order])


def test_an_empty_batch_is_a_batch(kit: Any, cohort: Cohort) -> None:
    for nobody in ([], np.zeros(0, np.int64), range(0)):
        batch = cohort.batch(nobody)
        assert len(batch) == 0 and batch.pixels_BVCHW.shape == (0, 4, 2, kit.H, kit.W)


@pytest.mark.parametrize("indices", [[-1], [24], [0.0], [True], [[0, 1]], ["p1"], [2**70]], ids=str)
def test_positions_that_are_not_there_are_refused(cohort: Cohort, indices: Any) -> None:
    with pytest.raises(CohortError, match="not there"):
        cohort.batch(indices)


def test_changing_a_batch_changes_nothing_else(cohort: Cohort) -> None:
    before = [
        getattr(cohort.batch([1, 2]), name).clone() for name in ("pixels_BVCHW", "clinical_BF", "clinical_mask_B")
    ]
    batch = cohort.batch([1, 2])
    batch.pixels_BVCHW.fill_(7)
    batch.clinical_BF.fill_(7)
    batch.clinical_mask_B.logical_not_()
    after = cohort.batch([1, 2])
    assert all(
        torch.equal(getattr(after, n), b)
        for n, b in zip(("pixels_BVCHW", "clinical_BF", "clinical_mask_B"), before, strict=True)
    )
    cohort.verify()
    Cohort.open(cohort.path).verify()


def test_arrays_of_the_cohort_cannot_be_written(cohort: Cohort) -> None:
    for array in (cohort.labels, cohort.clinical, cohort.view_index, cohort.clinical_mask):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_views_have_one_order_everywhere() -> None:
    assert VIEWS is BATCH_VIEWS
    assert imaging.VIEWS == VIEWS


def test_opening_and_splitting_need_no_torch(cohort: Cohort) -> None:
    code = (
        "import sys\nfrom shared_model.cohort import Cohort, split_indices\n"
        f"c = Cohort.open({str(cohort.path)!r}); split_indices(c, salt='s', fractions={{'a': 1.0}}); c.verify()\n"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


# --- damage


@pytest.mark.parametrize("name", [*FILES, "cohort.json"])
def test_a_missing_file_is_named(cohort: Cohort, name: str) -> None:
    (cohort.path / name).unlink()
    assert name in refuse(cohort.path, "cannot be read")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [1, 100])
def test_a_truncated_file_is_named(cohort: Cohort, name: str, cut: int) -> None:
    path = cohort.path / name
    path.write_bytes(path.read_bytes()[:-cut])
    assert name in refuse(cohort.path, "truncated")


@pytest.mark.parametrize("name", FILES)
def test_a_longer_file_is_refused(cohort: Cohort, name: str) -> None:
    with (cohort.path / name).open("ab") as file:
        file.write(b"\0")
    refuse(cohort.path, "truncated|too large")


@pytest.mark.parametrize("name", FILES[1:])
def test_one_flipped_bit_in_a_table_is_found_at_opening(cohort: Cohort, name: str) -> None:
    path = cohort.path / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert name in refuse(cohort.path, "damaged")


def test_one_flipped_bit_in_the_pixels_is_found_by_verify(cohort: Cohort) -> None:
    with (cohort.path / "pixels.npy").open("r+b") as file:
        file.seek(-5, 2)
        byte = file.read(1)[0]
        file.seek(-5, 2)
        file.write(bytes([byte ^ 1]))
    reopened = Cohort.open(cohort.path)
    with pytest.raises(CohortError, match="damaged"):
        reopened.verify()


def test_every_field_of_the_manifest_is_under_its_hash(cohort: Cohort) -> None:
    path = cohort.path / "cohort.json"
    envelope = json.loads(path.read_text())
    for field, value in envelope["manifest"].items():
        if field == "schema_version":
            continue
        changed = {**envelope["manifest"], field: {} if isinstance(value, dict) else value * 2}
        path.write_text(json.dumps({**envelope, "manifest": changed}))
        refuse(cohort.path, "damaged")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_is_refused_with_what_to_do(cohort: Cohort, version: object) -> None:
    resign(cohort.path, lambda manifest: manifest.update(schema_version=version))
    assert "prepare the cohort again with this release" in refuse(cohort.path, "another schema")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b'{"manifest": 1, "sha256": ""}', b"[" * 60_000, b" " * 70_000, b"\xff"],
)
def test_a_foreign_manifest_is_refused(cohort: Cohort, content: bytes) -> None:
    (cohort.path / "cohort.json").write_bytes(content)
    refuse(cohort.path, "no cohort manifest|too large")


def test_a_folder_that_is_no_cohort_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, "cannot be read")
    refuse(tmp_path / "nowhere", "cannot be read")
    (tmp_path / "cohort.json").mkdir()
    refuse(tmp_path, "no regular file")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("height", 4096),
        ("n_views", 10**9),
        ("n_patients", 10**9),
        ("n_features", 4096),
        ("width", 0),
        ("n_patients", -1),
        ("n_patients", 0),
        ("height", 10**9),
        ("site", "A B"),
        ("n_views", 1.5),
        ("content_sha256", "x"),
        ("extra", 1),
    ],
)
def test_a_manifest_that_claims_other_sizes_is_refused_before_anything_is_read(
    cohort: Cohort, field: str, value: object
) -> None:
    resign(cohort.path, lambda manifest: manifest.update({field: value}))
    refuse(cohort.path, "contradicts|truncated|no valid manifest")


def test_a_manifest_that_names_other_files_is_refused(cohort: Cohort) -> None:
    resign(cohort.path, lambda m: m["files"].update({"../secret": {"bytes": 1, "sha256": "0" * 64}}))
    refuse(cohort.path, "other files")


def test_an_array_of_another_type_or_shape_is_refused(kit: Any, cohort: Cohort) -> None:
    data = (cohort.path / "clinical.npy").read_bytes()[HEADER_BYTES:]
    rewrite(cohort.path, "clinical.npy", npy_header("<i4", (24, kit.F)) + data)
    refuse(cohort.path, "another type or shape")


def test_pixels_of_another_type_are_refused(kit: Any, cohort: Cohort) -> None:
    data = (cohort.path / "pixels.npy").read_bytes()[HEADER_BYTES:]
    header = npy_header("<u2", (cohort.manifest.n_views, 2, kit.H, kit.W))
    (cohort.path / "pixels.npy").write_bytes(header + data)
    refuse(cohort.path, "another type or shape")


def changed(cohort: Cohort, name: str, position: int, value: int | float) -> bytes:
    data = (cohort.path / name).read_bytes()
    dtype, _ = cohort.manifest.arrays()[name]
    array = np.frombuffer(data, dtype=dtype, offset=HEADER_BYTES).copy()
    array[position] = value
    return data[:HEADER_BYTES] + array.tobytes()


@pytest.mark.parametrize("value", [10**6, -2, -(2**31)])
def test_view_rows_outside_the_pixels_are_refused(cohort: Cohort, value: int) -> None:
    position = int(np.flatnonzero(cohort.view_index.ravel() >= 0)[0])
    rewrite(cohort.path, "view_index.npy", changed(cohort, "view_index.npy", position, value))
    refuse(cohort.path, "exactly one patient")


def test_one_film_for_two_patients_is_refused(cohort: Cohort) -> None:
    there = np.flatnonzero(cohort.view_index.ravel() >= 0)
    shared = int(cohort.view_index.ravel()[there[0]])
    rewrite(cohort.path, "view_index.npy", changed(cohort, "view_index.npy", int(there[-1]), shared))
    refuse(cohort.path, "exactly one patient")


def test_a_label_other_than_0_and_1_is_refused(cohort: Cohort) -> None:
    rewrite(cohort.path, "labels.npy", changed(cohort, "labels.npy", 0, 2))
    refuse(cohort.path, "labels")


def test_clinical_values_that_are_no_numbers_are_refused(cohort: Cohort) -> None:
    rewrite(cohort.path, "clinical.npy", changed(cohort, "clinical.npy", 0, float("nan")))
    refuse(cohort.path, "no numbers")


def test_clinical_values_without_a_row_are_refused(kit: Any, cohort: Cohort) -> None:
    position = int(np.flatnonzero(~cohort.clinical_mask)[0]) * kit.F
    rewrite(cohort.path, "clinical.npy", changed(cohort, "clinical.npy", position, 1.0))
    refuse(cohort.path, "no clinical row")


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b'{"pseudonym": ["a"], "attributes": {}}', b'{"pseudonym": 3, "attributes": {}}', b"{" * 9000],
)
def test_a_foreign_table_of_patients_is_refused(cohort: Cohort, content: bytes) -> None:
    rewrite(cohort.path, "patients.json", content)
    with pytest.raises(CohortError, match=r"patients\.json is damaged"):
        _ = Cohort.open(cohort.path).pseudonyms


def test_a_pseudonym_twice_in_a_foreign_table_is_refused(cohort: Cohort) -> None:
    values = json.loads((cohort.path / "patients.json").read_text())
    values["pseudonym"][1] = values["pseudonym"][0]
    rewrite(cohort.path, "patients.json", json.dumps(values).encode())
    with pytest.raises(CohortError, match="ascending and unique"):
        _ = Cohort.open(cohort.path).pseudonyms


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(cohort: Cohort, kind: str) -> None:
    path = cohort.path / "labels.npy"
    path.unlink()
    make = {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}
    make[kind]()
    refuse(cohort.path, "no regular file")


def test_a_cohort_moves_and_copies(cohort: Cohort, tmp_path: Path) -> None:
    shutil.copytree(cohort.path, tmp_path / "copy")
    copy = Cohort.open(str(tmp_path / "copy"))
    copy.verify()
    assert copy.content_sha256 == cohort.content_sha256


def test_files_beside_do_not_matter(cohort: Cohort) -> None:
    (cohort.path / "report.json").write_text("{}")
    Cohort.open(cohort.path).verify()


def test_only_the_studys_contract_and_pipeline_will_do(kit: Any, cohort: Cohort) -> None:
    cohort.require(contract_sha256=kit.CONTRACT_SHA, pipeline_sha256=kit.PIPELINE_SHA)
    with pytest.raises(CohortError, match="data contract"):
        cohort.require(contract_sha256="0" * 64, pipeline_sha256=kit.PIPELINE_SHA)
    with pytest.raises(CohortError, match="imaging pipeline"):
        cohort.require(contract_sha256=kit.CONTRACT_SHA, pipeline_sha256="0" * 64)


def test_opening_reads_no_pixels_and_leaves_no_file_open(kit: Any, write: Callable[..., Cohort]) -> None:
    cohort = write([kit.patient(n) for n in range(3)])
    fds = Path("/proc/self/fd")
    if not fds.exists():
        pytest.skip("open files can be counted on Linux only")
    gc.collect()
    before = len(list(fds.iterdir()))
    opened = [Cohort.open(cohort.path) for _ in range(20)]
    assert len(list(fds.iterdir())) <= before + 20  # numpy's map keeps one descriptor at most
    del opened
    gc.collect()
    assert len(list(fds.iterdir())) <= before
