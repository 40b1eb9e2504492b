"""Scores that an evaluator keeps: written and read without loss, and refused when they are not what they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from shared_model.errors import StorageError
from shared_model.evaluation import Scores
from shared_model.evaluation import kept as kept_module
from shared_model.evaluation.kept import keep_scores, read_kept

N = 6


def scores(seed: int = 0) -> Scores:
    fused, image, clinical = np.random.default_rng(seed).normal(size=(3, N))
    return Scores(np.array([0, 1, 0, 1, 1, 0], dtype=np.uint8), fused, image, clinical, np.ones((N, 2)))


def written(path: Path, vendors: list[object] | None = None, pseudonyms: str = "abcdef") -> Path:
    keep_scores(path, scores(), pseudonyms=list(pseudonyms), vendors=vendors or ["B", None, "A", "A", float("nan"), ""])
    return path


def test_what_is_kept_is_read_again_to_the_bit(tmp_path: Path) -> None:
    kept, given = read_kept(written(tmp_path / "state" / "x.safetensors")), scores()
    assert kept.label.tolist() == given.labels.tolist()
    for name in ("fused", "image", "clinical"):
        assert getattr(kept, name).tobytes() == getattr(given, name).tobytes()
    assert kept.vendors == ("A", "B", "unknown")
    assert kept.of_vendors(["A"]).tolist() == [False, False, True, True, False, False]
    assert kept.of_vendors(["A", "B", "C"]).sum() == 3 and not kept.of_vendors([]).any()
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["x.safetensors"]


def test_other_women_or_another_order_have_another_name(tmp_path: Path) -> None:
    names = [read_kept(written(tmp_path / w, pseudonyms=w)).women for w in ("abcdef", "abcdeg", "bacdef")]
    assert len(set(names)) == 3


def test_more_vendors_than_can_be_named_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "MAX_VENDORS", 3)
    kept = read_kept(written(tmp_path / "x", vendors=["D", "C", "B", "A", "A", "B"]))
    assert kept.vendors == ("A", "B", "unknown") and kept.of_vendors(["unknown"]).tolist() == [True] * 2 + [False] * 4


@pytest.mark.parametrize(("changes", "words"), [
    ({"fused": np.full(N, np.nan)}, "not finite"),
    ({"fused": np.zeros(N - 1)}, "different lengths"),
    ({"fused": np.zeros(N, dtype=np.float32)}, "other tensors"),
    ({"more": np.zeros(N)}, "other tensors"),
    ({"label": np.full(N, 2, dtype=np.uint8)}, "do not exist"),
    ({"vendor": np.full(N, 9, dtype=np.uint8)}, "do not exist"),
])  # fmt: skip
def test_a_file_with_another_content_is_refused(tmp_path: Path, changes: dict[str, np.ndarray], words: str) -> None:  # type: ignore[type-arg]
    byte, number = np.zeros(N, dtype=np.uint8), np.zeros(N)
    tensors = {"label": byte, "fused": number, "image": number, "clinical": number, "vendor": byte}
    save_file(tensors | changes, tmp_path / "x", metadata={"kept": '{"women": "ab", "vendors": ["A"]}'})
    with pytest.raises(StorageError, match=words):
        read_kept(tmp_path / "x")


@pytest.mark.parametrize("metadata", [None, {"kept": "{"}, {"kept": "[]"}, {"kept": '{"women": "ab", "vendors": 3}'},
                                      {"kept": "[" * 100_000}])  # fmt: skip
def test_a_file_without_its_metadata_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"label": np.zeros(N, dtype=np.uint8)}, tmp_path / "x", metadata=metadata)
    with pytest.raises(StorageError, match="damaged"):
        read_kept(tmp_path / "x")


def test_no_file_a_cut_one_and_a_huge_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="No such file"):
        read_kept(tmp_path / "x")
    whole = written(tmp_path / "x").read_bytes()
    for end in (0, 7, 40, len(whole) - 1):
        (tmp_path / "x").write_bytes(whole[:end])
        with pytest.raises(StorageError, match="damaged"):
            read_kept(tmp_path / "x")
    (tmp_path / "x").write_bytes(whole)
    monkeypatch.setattr(kept_module, "MAX_BYTES", len(whole) - 1)
    with pytest.raises(StorageError, match="too large"):
        read_kept(tmp_path / "x")


def test_a_disk_that_refuses_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot keep its scores"):
        written(tmp_path / "file" / "x")
