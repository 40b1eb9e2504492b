"""The exported graph answers as the model does on real cohorts, says what it is, and is written after the check."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.reporting import Signature, write_passport
from shared_model.cohort import Cohort
from shared_model.errors import CohortError, ConfigError, ExportError, PassportError
from shared_model.export import graph as graphs
from shared_model.export import parity as parities
from shared_model.export.export import export_onnx
from shared_model.export.graph import INPUTS, OUTPUTS, load_model, tensors_of
from shared_model.passport.verify import read_weights
from shared_model.protocol import Protocol
from tests.finished import finish

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def finished(root: Path, study_maker: Callable[..., Any], **changes: Any) -> Path:
    run_dir = finish(study_maker(root, sites=1, training__phases=[
        {"name": "all", "rounds": 3, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}], **changes))
    write_passport(run_dir, Signature.of_run())
    return run_dir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, study_maker: Callable[..., Any]) -> Path:
    return finished(tmp_path_factory.mktemp("run") / "study", study_maker)


def test_answers_are_the_model_s_for_any_number_of_women(run: Path, tmp_path: Path) -> None:
    done = export_onnx(run, tmp_path / "out" / "model.onnx", women=40)
    assert done.parity.women == 40 and done.parity.answers == 7 * 40 and done.parity.worst < 1e-4
    protocol, cohort = Protocol.read(run / "protocol.json"), Cohort.open(run / "sites" / "evaluator" / "cohort")
    weights = read_weights(run / "model.safetensors")
    temperature = done.passport.passport.model.temperature
    assert temperature
    exported = load_model(protocol, weights, temperature=temperature)
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    for women in (1, 5, len(cohort)):
        tensors = tensors_of(cohort.batch(range(women)))
        found = session.run(list(OUTPUTS), {n: t.numpy() for n, t in zip(INPUTS, tensors, strict=True)})
        with torch.inference_mode():
            plain = exported.model(cohort.batch(range(women)))  # as the evaluator runs it: films folded
        np.testing.assert_allclose(found[1], plain.logit_B.numpy(), atol=1e-4)
        np.testing.assert_allclose(found[0], torch.sigmoid(plain.logit_B / temperature).numpy(), atol=1e-5)
    assert sorted(p.name for p in done.path.parent.iterdir()) == ["model.onnx"]


def test_the_file_says_what_it_is(run: Path, tmp_path: Path) -> None:
    done = export_onnx(run, tmp_path / "model.onnx", women=3)
    model = onnx.load(done.path)
    said = {entry.key.removeprefix("mammofed."): entry.value for entry in model.metadata_props}
    assert said["passport_sha256"] == done.passport.sha256
    assert said["weights_sha256"] == done.passport.passport.model.sha256
    assert json.loads(said["opset"]) == graphs.OPSET == model.opset_import[0].version
    assert json.loads(said["thresholds"]) == done.passport.passport.model.thresholds
    assert any("no medical device" in limit for limit in json.loads(said["limits"]))
    assert [i.name for i in model.graph.input] == list(INPUTS)


@pytest.mark.parametrize("fusion", ["early", "mid", "late"])
def test_every_way_to_join_is_exported(tmp_path: Path, study_maker: Callable[..., Any], fusion: str) -> None:
    from shared_model.fusion import FusionConfig, arrays_of, build_model
    from shared_model.messages import weights_sha256

    def maker(*arguments: Any, **settings: Any) -> Any:
        study = study_maker(*arguments, model__fusion=fusion, **settings)
        config = FusionConfig(size="tiny", fusion=fusion, n_clinical=study.protocol.contract.n_features, height=32,  # type: ignore[arg-type]
                              width=32)  # fmt: skip
        arrays = arrays_of(build_model(config, seed=1, prevalence=0.3))
        assert weights_sha256(arrays)
        return replace(study, arrays=arrays)

    done = export_onnx(finished(tmp_path / "study", maker), tmp_path / "model.onnx", women=6)
    assert done.parity.worst < 1e-4


def test_a_graph_that_differs_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was there")
    monkeypatch.setattr(parities, "TOLERANCE", 0.0)
    with pytest.raises(ExportError, match=r"another .* than the model"):
        export_onnx(run, path, women=4)
    assert path.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [path]


def test_nothing_is_exported_that_is_not_what_its_passport_says(
    run: Path, tmp_path: Path, study_maker: Callable[..., Any]
) -> None:
    other = finished(tmp_path / "other", study_maker)
    (other / "model.safetensors").write_bytes((other / "initial.safetensors").read_bytes())
    with pytest.raises(PassportError, match="not the file that the passport names"):
        export_onnx(other, tmp_path / "model.onnx")
    (run.parent / "empty").mkdir(exist_ok=True)
    with pytest.raises(PassportError, match="cannot read"):
        export_onnx(run.parent / "empty", tmp_path / "model.onnx")


def test_cases_must_be_prepared_as_the_model_needs_them(run: Path, tmp_path: Path) -> None:
    from tests.conftest import write_cohort

    write_cohort(tmp_path / "cohort", site="north", patients=6, seed=9, pipeline="5" * 64)
    with pytest.raises(CohortError, match="another imaging pipeline"):
        export_onnx(run, tmp_path / "model.onnx", cohort=tmp_path / "cohort")


def test_without_the_extra_it_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mammofed\[export\]"):
        export_onnx(run, tmp_path / "model.onnx")
