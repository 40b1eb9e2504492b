"""Public weights: what is shipped is what its card says, and what does not agree is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shared_model.cohort.batch import PatientBatch
from shared_model.errors import WeightsError
from shared_model.fusion import SIZES, FusionConfig, arrays_of, build_model, load_public_weights
from shared_model.messages import weights_sha256
from shared_model.weights import FOLDER, LICENCE, find_public_weights, public_weights

SHIPPED = ("tiny", "small")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for end in ("json", "safetensors"):
        shutil.copy(FOLDER / f"tiny.{end}", tmp_path)
    return tmp_path


def spoil_card(folder: Path, **values: object) -> None:
    card = folder / "tiny.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | values))


@pytest.mark.parametrize("size", SHIPPED)
def test_shipped_weights_are_those_of_their_card(size: str) -> None:
    arrays, info = public_weights(size)
    assert weights_sha256(arrays) == info.sha256
    assert info.licence == LICENCE
    assert "no patient data" in info.licence
    assert 0.7 < info.auc_low < info.auc < info.auc_high
    found, same = find_public_weights(info.sha256)
    assert same == info
    assert all(np.array_equal(arrays[name], found[name]) for name in arrays)


@pytest.mark.parametrize("size", SHIPPED)
@pytest.mark.parametrize("fusion", ["gated", "early", "mid", "late"])
def test_a_study_starts_at_what_the_public_image_branch_knows(size: str, fusion: str) -> None:
    spec = SIZES[size]  # type: ignore[index]
    config = FusionConfig(size=size, fusion=fusion, n_clinical=7, height=spec.height, width=spec.width)  # type: ignore[arg-type]
    model = build_model(config, seed=0, prevalence=0.2)
    before = arrays_of(model)
    info = load_public_weights(model, size)
    after, image = arrays_of(model), set(model.image_parameters())
    shipped = {name: after[name] for name in image}
    assert weights_sha256(shipped) == info.sha256
    assert all(np.array_equal(before[name], after[name]) for name in set(after) - image)
    g = torch.Generator().manual_seed(0)
    films = torch.rand(2, 4, 2, spec.height, spec.width, generator=g)
    yes = torch.ones(2, dtype=torch.bool)
    output = model(PatientBatch(films, yes[:, None].expand(-1, 4), torch.randn(2, 7, generator=g), yes, torch.zeros(2)))
    assert torch.equal(output.logit_B, output.image_logit_B)


def test_weights_of_another_size_are_refused() -> None:
    config = FusionConfig(size="tiny", fusion="gated", n_clinical=7, height=112, width=84)
    with pytest.raises(WeightsError, match=r"not what the model holds"):
        load_public_weights(build_model(config, seed=0, prevalence=0.2), "small")


def test_a_size_without_public_weights_says_what_to_do() -> None:
    with pytest.raises(WeightsError, match="mammofed pretrain"):
        public_weights("full")


def test_one_changed_byte_is_noticed(folder: Path) -> None:
    path = folder / "tiny.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="not those of their card"):
        public_weights("tiny", folder=folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"sha256": "0" * 64}, "not those"), ({"file_sha256": "0" * 64}, "not those"), ({"size": "small"}, "not those"),
     ({"card_version": 2}, "not those"), ({"auc": "high"}, "auc"), ({"extra": 1}, "extra")],
)  # fmt: skip
def test_a_card_that_lies_is_refused(folder: Path, values: dict[str, object], words: str) -> None:
    spoil_card(folder, **values)
    with pytest.raises(WeightsError, match=words):
        public_weights("tiny", folder=folder)


def test_damaged_files_are_refused(folder: Path) -> None:
    (folder / "tiny.json").write_text("{")
    with pytest.raises(WeightsError, match="damaged"):
        public_weights("tiny", folder=folder)
    (folder / "tiny.json").write_bytes(b" " * (1 << 17))
    with pytest.raises(WeightsError, match="too large"):
        public_weights("tiny", folder=folder)


def test_an_unknown_hash_names_what_there_is() -> None:
    with pytest.raises(WeightsError, match="tiny"):
        find_public_weights("0" * 64)


def test_reading_weights_needs_no_torch() -> None:
    code = "import sys; import shared_model.weights as w; w.public_weights('tiny'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
