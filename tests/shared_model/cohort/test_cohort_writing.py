"""The cohort writer: what it keeps, what it refuses, and that nothing is half there whatever happens."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.cohort import VIEWS, Cohort
from shared_model.errors import CohortError, StorageError

ROOT = Path(__file__).resolve().parents[3]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read_back(kit: Any, write: Callable[..., Cohort]) -> None:
    rows = [kit.patient(n) for n in range(24)]
    cohort = write(rows)
    assert len(cohort) == 24 and cohort.site == "north"
    assert list(cohort.pseudonyms) == sorted(row["pseudonym"] for row in rows)
    by_name = {row["pseudonym"]: row for row in rows}
    batch = cohort.batch(range(24))
    for position, pseudonym in enumerate(cohort.pseudonyms):
        row = by_name[pseudonym]
        assert cohort.labels[position] == row["label"]
        assert cohort.clinical_mask[position] == (row["clinical"] is not None)
        expected = np.zeros(kit.F, np.float32) if row["clinical"] is None else row["clinical"]
        assert np.array_equal(cohort.clinical[position], expected)
        for v, name in enumerate(VIEWS):
            assert (cohort.view_index[position, v] >= 0) == (name in row["views"])
            pixels = batch.pixels_BVCHW[position, v].numpy()
            there = row["views"].get(name, np.zeros((2, kit.H, kit.W), np.float32))
            assert np.array_equal(pixels, there.astype(np.float16).astype(np.float32))
        stated = row["attributes"]["age_years"]
        found = cohort.attributes["age_years"].iloc[position]
        assert np.isnan(found) if stated is None else found == stated


def test_plain_numpy_opens_every_array(cohort: Cohort) -> None:
    for name, (dtype, shape) in cohort.manifest.arrays().items():
        array = np.load(cohort.path / name, mmap_mode="r", allow_pickle=False)
        assert array.dtype == dtype and array.shape == shape


def test_the_content_hash_ignores_arrival_and_site(kit: Any, write: Callable[..., Cohort]) -> None:
    rows = [kit.patient(n) for n in range(12)]
    one = write(rows, name="one")
    two = write(rows[::-1], name="two", site="south")
    assert one.content_sha256 == two.content_sha256
    one.verify()
    two.verify()


@pytest.mark.parametrize("what", ["pixels", "clinical", "label", "attribute", "view", "contract", "clinical_gone"])
def test_the_content_hash_sees_every_part(kit: Any, write: Callable[..., Cohort], what: str) -> None:
    rows = [kit.patient(n) for n in (1, 2, 7)]
    before = write([kit.patient(n) for n in (1, 2, 7)], name="before").content_sha256
    changes: dict[str, object] = {}
    if what == "pixels":
        next(iter(rows[0]["views"].values()))[1, 2, 3] = 0.75
    elif what == "clinical":
        rows[1]["clinical"][0] += 1
    elif what == "label":
        rows[2]["label"] = 1 - rows[2]["label"]
    elif what == "attribute":
        rows[0]["attributes"]["vendor"] = "Z"
    elif what == "view":
        name, pixels = rows[0]["views"].popitem()
        rows[0]["views"][next(v for v in VIEWS if v != name and v not in rows[0]["views"])] = pixels
    elif what == "contract":
        changes["contract_sha256"] = "e" * 64
    else:
        rows[1]["clinical"] = None
    assert write(rows, name="after", **changes).content_sha256 != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "wrong label"),
        ({"label": -1}, "wrong label"),
        ({"label": 1.0}, "wrong label"),
        ({"label": "1"}, "wrong label"),
        ({"label": None}, "wrong label"),
        ({"pseudonym": "Jane Doe"}, "no valid pseudonym"),
        ({"pseudonym": ""}, "no valid pseudonym"),
        ({"pseudonym": "../x"}, "no valid pseudonym"),
        ({"pseudonym": "a" * 65}, "no valid pseudonym"),
        ({"pseudonym": "a\n"}, "no valid pseudonym"),
        ({"pseudonym": 17}, "no valid pseudonym"),
        ({"views": {}, "clinical": None}, "neither a view nor a clinical row"),
        ({"clinical": np.zeros(4, np.float32)}, "wrong clinical row"),
        ({"clinical": np.full(5, np.nan, np.float32)}, "wrong clinical row"),
        ({"views": {"L_ML": np.zeros((2, 6, 4), np.float32)}}, "unknown view"),
        ({"views": {"L_CC": np.zeros((6, 4), np.float32)}}, "wrong shape"),
        ({"views": {"L_CC": np.zeros((2, 4, 6), np.float32)}}, "wrong shape"),
        ({"views": {"L_CC": np.zeros((2, 6, 4), np.uint8)}}, "wrong shape or type"),
        ({"views": {"L_CC": np.full((2, 6, 4), 1.01, np.float32)}}, "outside"),
        ({"views": {"L_CC": np.full((2, 6, 4), -0.01, np.float32)}}, "outside"),
        ({"views": {"L_CC": np.full((2, 6, 4), np.nan, np.float32)}}, "outside"),
        ({"attributes": {"vendor": "x" * 65}}, "wrong attribute"),
        ({"attributes": {"age": float("inf")}}, "wrong attribute"),
        ({"attributes": {"flag": True}}, "wrong attribute"),
        ({"attributes": {"a": [1]}}, "wrong attribute"),
        ({"attributes": {"Bad Name": 1}}, "wrong name"),
    ],
)
def test_a_wrong_patient_is_refused_and_the_rest_goes_on(
    kit: Any, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with kit.writer(tmp_path / "c") as target:
        kit.add(target, kit.patient(1))
        with pytest.raises(CohortError, match=message) as caught:
            kit.add(target, {**kit.patient(2), **change})
        assert "patient 2" in str(caught.value) and "Jane" not in str(caught.value)
        kit.add(target, kit.patient(3))
    cohort = Cohort.open(tmp_path / "c")
    assert len(cohort) == 2
    cohort.verify()


def test_a_patient_twice_is_refused_by_ordinal(kit: Any, tmp_path: Path) -> None:
    with kit.writer(tmp_path / "c") as target:
        for n in (1, 2, 3):
            kit.add(target, kit.patient(n))
        with pytest.raises(CohortError, match=r"patient 4 \(p05831\) is in the cohort already, as patient 2"):
            kit.add(target, kit.patient(2))
    assert len(Cohort.open(tmp_path / "c")) == 3


def test_numpy_scalars_are_taken_as_labels_and_attributes(kit: Any, write: Callable[..., Cohort]) -> None:
    row = {**kit.patient(1), "label": np.int64(1), "attributes": {"age": np.float32(50.5), "n": np.int32(3)}}
    cohort = write([row])
    cohort.verify()
    assert cohort.attributes["views"].tolist() == [str(int((cohort.view_index[0] >= 0).sum()))]
    assert cohort.attributes["age"].tolist() == [50.5] and cohort.labels.tolist() == [1]


@pytest.mark.parametrize(
    "change", [{"site": "North Hospital"}, {"contract_sha256": "x"}, {"height": 0}, {"width": 10**6}, {"n_features": 0}]
)
def test_wrong_terms_are_found_before_the_first_patient(kit: Any, tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(CohortError, match=next(iter(change))):
        kit.writer(tmp_path / "c", **change)
    assert left_over(tmp_path) == []


def test_no_patient_is_no_cohort(kit: Any, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no patient"), kit.writer(tmp_path / "c"):
        pass
    assert left_over(tmp_path) == []


def test_a_table_only_cohort_has_no_films(kit: Any, write: Callable[..., Cohort]) -> None:
    cohort = write([{**kit.patient(n), "views": {}} for n in (2, 4)])
    batch = cohort.batch([0, 1])
    assert not batch.view_mask_BV.any() and not batch.pixels_BVCHW.any() and batch.clinical_mask_B.all()
    cohort.verify()


def test_an_error_inside_leaves_nothing_behind(kit: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="importer"), kit.writer(tmp_path / "c") as target:
        kit.add(target, kit.patient(1))
        raise RuntimeError("importer")
    assert left_over(tmp_path) == []


def test_nothing_is_visible_before_the_end(kit: Any, tmp_path: Path) -> None:
    with kit.writer(tmp_path / "c") as target:
        kit.add(target, kit.patient(1))
        assert not (tmp_path / "c").exists()
        assert target.content_sha256 is None
    assert left_over(tmp_path) == ["c"]
    assert target.content_sha256 == Cohort.open(tmp_path / "c").content_sha256


def test_an_existing_folder_is_not_touched(kit: Any, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("mine")
    with pytest.raises(CohortError, match="exists already"), kit.writer(tmp_path / "c"):
        pass
    assert (tmp_path / "c" / "thesis.txt").read_text() == "mine"


def test_a_folder_that_appears_meanwhile_is_not_touched(kit: Any, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="appeared meanwhile"), kit.writer(tmp_path / "c") as target:
        kit.add(target, kit.patient(1))
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "other").write_text("theirs")
    assert left_over(tmp_path) == ["c"] and (tmp_path / "c" / "other").read_text() == "theirs"


def test_a_replacement_leaves_open_readers_their_cohort(kit: Any, tmp_path: Path, write: Callable[..., Cohort]) -> None:
    old = write([kit.patient(n) for n in (1, 2)])
    first = old.batch([0, 1])
    new = write([kit.patient(n) for n in (1, 2, 3)], replace=True)
    assert (len(old), len(new)) == (2, 3)
    assert np.array_equal(old.batch([0, 1]).pixels_BVCHW, first.pixels_BVCHW)
    assert left_over(tmp_path) == ["cohort"]


def test_a_failed_replacement_keeps_the_old_cohort(kit: Any, tmp_path: Path, write: Callable[..., Cohort]) -> None:
    old = write([kit.patient(1)])
    with pytest.raises(RuntimeError), kit.writer(tmp_path / "cohort", replace=True) as target:
        kit.add(target, kit.patient(2))
        raise RuntimeError
    assert Cohort.open(tmp_path / "cohort").content_sha256 == old.content_sha256
    assert left_over(tmp_path) == ["cohort"]


def test_a_closed_writer_takes_nobody(kit: Any, tmp_path: Path) -> None:
    target = kit.writer(tmp_path / "c")
    with pytest.raises(CohortError, match="not open"):
        kit.add(target, kit.patient(1))
    with target:
        kit.add(target, kit.patient(1))
    with pytest.raises(CohortError, match="not open"):
        kit.add(target, kit.patient(2))


SCRIPT = """
    import os, resource, signal, sys
    from pathlib import Path
    import numpy as np
    from shared_model.cohort import CohortWriter
    from shared_model.errors import StorageError
    film = np.random.default_rng(0).random((2, 64, 64), dtype=np.float32)
    with CohortWriter(Path(sys.argv[1]), site="a", contract_sha256="c" * 64, pipeline_sha256="d" * 64, height=64,
                      width=64, n_features=3) as writer:
        {prepare}
        for n in range(400):
            writer.add(f"p{{n}}", {{"L_CC": film}}, None, n % 2, {{}})
        {last}
"""


def run_writer(target: Path, *, prepare: str = "pass", last: str = "pass") -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(SCRIPT.format(prepare=prepare, last=last))
    return subprocess.run(
        [sys.executable, "-c", code, str(target)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_killed_importer_leaves_no_cohort(tmp_path: Path) -> None:
    done = run_writer(tmp_path / "c", last="os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "c").exists()
    assert all(name.startswith(".c.partial-") for name in left_over(tmp_path))
    assert run_writer(tmp_path / "c").returncode == 0
    assert len(Cohort.open(tmp_path / "c")) == 400


@pytest.mark.parametrize("limit", [1 << 20, 64 + 400 * 2 * 64 * 64 * 2], ids=["while-adding", "at-the-end"])
def test_a_disk_that_takes_no_more_is_told_and_cleaned_up(tmp_path: Path, limit: int) -> None:
    # A file size limit makes the kernel refuse the write, as a full disk does.
    done = run_writer(tmp_path / "c", prepare=f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    assert done.returncode == 1
    assert "StorageError" in done.stderr and "could not be written" in done.stderr and "to do:" in done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert left_over(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(kit: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"), kit.writer(tmp_path / "file" / "c"):
        pass


def test_memory_does_not_grow_with_films(kit: Any, tmp_path: Path) -> None:
    film = np.random.default_rng(0).random((2, 512, 256), dtype=np.float32)  # half a megabyte on disk

    def peak(patients: int) -> int:
        tracemalloc.start()
        with kit.writer(tmp_path / str(patients), height=512, width=256) as target:
            for n in range(patients):
                target.add(f"p{n}", {"L_CC": film}, None, 0, {"vendor": "A"})
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(60) - peak(6) < 1 << 20  # 54 more films are 27 MB


def test_the_manifest_says_what_is_there(kit: Any, cohort: Cohort) -> None:
    manifest = json.loads((cohort.path / "cohort.json").read_text())["manifest"]
    assert manifest["schema_version"] == 1
    assert manifest["n_patients"] == 24 and manifest["n_positives"] == int(cohort.labels.sum())
    assert manifest["n_views"] == int((cohort.view_index >= 0).sum())
    assert (manifest["height"], manifest["width"], manifest["n_features"]) == (kit.H, kit.W, kit.F)
    assert set(manifest["files"]) == set(left_over(cohort.path)) - {"cohort.json"}


@settings(max_examples=25)
@given(st.data())
def test_any_patients_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    from shared_model.cohort import CohortWriter

    folder = tmp_path_factory.mktemp("any") / "c"
    names = data.draw(st.lists(st.from_regex(r"\A[A-Za-z0-9_-]{1,10}\Z"), min_size=1, max_size=6, unique=True))
    value = st.one_of(
        st.none(), st.text(max_size=8), st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False)
    )
    rows = {}
    for name in names:
        films = data.draw(st.dictionaries(st.sampled_from(VIEWS), st.floats(0, 1, width=16), max_size=4))
        table = data.draw(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3)) if not films else None
        rows[name] = (films, table, data.draw(st.integers(0, 1)), data.draw(st.dictionaries(st.just("a"), value)))
    with CohortWriter(
        folder, site="s", contract_sha256="0" * 64, pipeline_sha256="1" * 64, height=2, width=3, n_features=3
    ) as target:
        for name, (films, table, label, attributes) in rows.items():
            views = {view: np.full((2, 2, 3), grey, np.float32) for view, grey in films.items()}
            target.add(name, views, None if table is None else np.array(table, np.float32), label, attributes)
    cohort = Cohort.open(folder)
    cohort.verify()
    batch = cohort.batch(range(len(cohort)))
    for position, name in enumerate(cohort.pseudonyms):
        films, table, label, _ = rows[name]
        assert batch.pixels_BVCHW[position, :, 0, 0, 0].tolist() == [films.get(view, 0.0) for view in VIEWS]
        assert batch.labels_B[position] == label
        assert bool(batch.clinical_mask_B[position]) == (table is not None)
