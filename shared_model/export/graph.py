"""The fusion model as one ONNX graph of bare tensors, any number of patients at a time.

Letters: B patients, V = 4 views (L_CC, L_MLO, R_CC, R_MLO), C = 2 channels, H W pixels, F clinical features.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from shared_model.cohort.batch import VIEWS, PatientBatch
from shared_model.errors import ConfigError
from shared_model.fusion import FusionConfig, build_model, load_arrays
from shared_model.fusion.config import IMAGE_CHANNELS
from shared_model.messages import Arrays
from shared_model.protocol import Protocol

if TYPE_CHECKING:
    from shared_model.fusion.model import FusionModel

OPSET: Final = 18  # of December 2022; read by onnxruntime from 1.14 on
INPUTS: Final[Mapping[str, str]] = {
    "pixels": "float32 [patients, 4, 2, height, width] in [0, 1], by the pipeline; zeros where a view is missing",
    "view_mask": "bool [patients, 4], which of L_CC, L_MLO, R_CC, R_MLO is there",
    "clinical": "float32 [patients, features], encoded by the data contract; zeros without a table",
    "clinical_mask": "bool [patients], whether there is a table",
}
OUTPUTS: Final[Mapping[str, str]] = {
    "probability": "float32 [patients], after temperature, at the prevalence of the selection women",
    "logit": "float32 [patients], log odds from all that is there; thresholds are on it",
    "image_logit": "float32 [patients], from the films alone",
    "clinical_logit": "float32 [patients], from the table alone",
    "gate": "float32 [patients, 2], how much films and table counted; not an explanation",
    "view_weights": "float32 [patients, 4], attention over the views; not an explanation",
}


class ExportedModel(nn.Module):
    """The model as it is exported: bare tensors in, :data:`OUTPUTS` out. temperature: of the fused logit."""

    def __init__(self, model: FusionModel, *, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(
        self, pixels_BVCHW: Tensor, view_mask_BV: Tensor, clinical_BF: Tensor, clinical_mask_B: Tensor
    ) -> tuple[Tensor, ...]:
        """In the order of :data:`OUTPUTS`."""
        present_B2 = torch.stack([view_mask_BV.any(dim=1), clinical_mask_B], dim=1).to(clinical_BF.dtype)
        out = self.model.forward_tensors(pixels_BVCHW, view_mask_BV, clinical_BF, present_B2)
        probability_B = torch.sigmoid(out.logit_B / self.temperature)
        return probability_B, out.logit_B, out.image_logit_B, out.clinical_logit_B, out.gate_B2, out.view_weights_BV


def load_model(protocol: Protocol, weights: Arrays, *, temperature: float) -> ExportedModel:
    """The protocol's model with these weights, on the CPU, for evaluation.

    Raises:
        ConfigError, WeightsError: protocol or weights describe another model, or one of more than films and table.
    """
    if protocol.model.others:
        raise ConfigError("a graph takes films and table only", found=", ".join(protocol.model.others),
                          expected="a study of image and clinical")  # fmt: skip
    model = build_model(FusionConfig.of(protocol), seed=protocol.seed, prevalence=protocol.loss.prevalence)
    load_arrays(model, weights)
    model.eval()
    return ExportedModel(model, temperature=temperature).eval()


def tensors_of(batch: PatientBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch as the graph takes it."""
    return batch.pixels_BVCHW, batch.view_mask_BV, batch.clinical_BF, batch.clinical_mask_B


def write_graph(exported: ExportedModel, path: Path) -> None:
    """Write the graph without metadata.

    Raises:
        ConfigError: `onnx` is not installed.
    """
    require("onnx")
    config, fold = exported.model.config, exported.model.fold_views
    # Views one after another: packing the films that are there has a size that depends on the data.
    exported.model.fold_views = False
    views, patients = len(VIEWS), 2
    example = (
        torch.zeros(patients, views, IMAGE_CHANNELS, config.height, config.width),
        torch.ones(patients, views, dtype=torch.bool), torch.zeros(patients, config.n_clinical),
        torch.ones(patients, dtype=torch.bool),
    )  # fmt: skip
    try:
        with warnings.catch_warnings():  # that the tracer is old, and that film sizes become constants, as they are
            warnings.simplefilter("ignore")
            # The older exporter: the newer one needs two more packages and gives the same graph.
            torch.onnx.export(
                exported, example, str(path), input_names=list(INPUTS), output_names=list(OUTPUTS), dynamo=False,
                opset_version=OPSET, dynamic_axes={name: {0: "patients"} for name in (*INPUTS, *OUTPUTS)},
            )  # fmt: skip
    finally:
        exported.model.fold_views = fold


def require(module: str) -> None:
    """Refuse in words where the extra is not installed.

    Raises:
        ConfigError: it is not.
    """
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ConfigError(f"`mammofed export` needs the package {module}", found="not installed",
                          remedy="pip install -c constraints.txt 'mammofed[export]'")  # fmt: skip
