"""Heat maps of a woman's films by four methods behind one call; used by case reports, results for the PACS, and checks.

    hirescam               gradient times activation, cell by cell (Draelos and Carin 2020, arXiv 2011.08891); default
    gradcam                gradients averaged over the film first (Selvaraju et al. 2017, arXiv 1610.02391)
    integrated_gradients   from a film without tissue to the film (Sundararajan et al. 2017, arXiv 1703.01365)
    occlusion              what covering a place costs (Zeiler and Fergus 2014, arXiv 1311.2901)

All by captum, on the path that folds views into the batch: on a layer that is called once a view captum would return
one view's map and say nothing. A map is what speaks *for* cancer; of a low score it is not where a cancer is.
Letters: B women, V = 4 views, N films that are there, H W pixels of the canvas, h w cells of the feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam, LayerGradientXActivation, Occlusion
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from shared_model.cohort.batch import PatientBatch
from shared_model.errors import ConfigError
from shared_model.fusion import FusionModel

Method = Literal["hirescam", "gradcam", "integrated_gradients", "occlusion"]
Target = Literal["fused", "image"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_METHOD: Method = "hirescam"

STEPS = 24  # of integrated gradients; Gauss-Legendre, so that the parts add up to the score within a percent
SMOOTHING_PX = 3.0  # of integrated gradients: single pixels say nothing to a reader
WINDOW, STRIDE = 8, 4  # of occlusion: in the height of the canvas an eighth, moved by half of that
FILMS_AT_A_TIME = 128

Forward = Callable[..., Tensor]


def heat_maps(
    model: FusionModel, batch: PatientBatch, *, method: Method = DEFAULT_METHOD, target: Target = "fused"
) -> NDArray[np.float32]:
    """float32 [B, V, H, W], at least 0, in logits a cell (or unscaled): how much each place speaks for cancer.

    Zeros where a view is missing. target: the fused logit, or the image head alone (what the films say whatever the
    table says).

    Raises:
        ConfigError: no such method.
    """
    if method not in _METHODS:
        raise ConfigError("no such method of explanation", found=method, expected=", ".join(METHODS))
    with _ready(model), torch.enable_grad():
        pixels = batch.pixels_BVCHW.detach().clone().requires_grad_()
        others = (batch.view_mask_BV, batch.clinical_BF, batch.modality_mask_B2)

        def forward(pixels_BVCHW: Tensor, mask_BV: Tensor, clinical_BF: Tensor, modality_B2: Tensor) -> Tensor:
            output = model.forward_tensors(pixels_BVCHW, mask_BV, clinical_BF, modality_B2)
            return output.logit_B if target == "fused" else output.image_logit_B

        if not bool(batch.view_mask_BV.any()):
            return np.zeros((*batch.view_mask_BV.shape, *pixels.shape[-2:]), np.float32)
        found = _METHODS[method](model, forward, pixels, others)
    present = batch.view_mask_BV[:, :, None, None].to("cpu")
    positive: NDArray[np.float32] = (found.detach().cpu().float().clamp(min=0.0) * present).numpy()
    return positive


def _hirescam(model: FusionModel, forward: Forward, pixels: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    attribution = LayerGradientXActivation(forward, model.encoder.blocks)
    cells_NChw = attribution.attribute(pixels, additional_forward_args=others)
    return _on_canvas(cells_NChw.sum(dim=1, keepdim=True).relu(), pixels, others[0])


def _gradcam(model: FusionModel, forward: Forward, pixels: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    attribution = LayerGradCam(forward, model.encoder.blocks)
    cells_N1hw = attribution.attribute(pixels, additional_forward_args=others, relu_attributions=True)
    return _on_canvas(cells_N1hw, pixels, others[0])


def _integrated_gradients(model: FusionModel, forward: Forward, pixels: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    attribution = IntegratedGradients(forward).attribute(
        pixels, baselines=0.0, additional_forward_args=others, n_steps=STEPS,
        internal_batch_size=max(len(pixels), FILMS_AT_A_TIME // pixels.shape[1]),
    )  # fmt: skip
    summed = attribution.abs().sum(dim=2).detach().cpu().numpy()
    return torch.from_numpy(gaussian_filter(summed, sigma=(0, 0, SMOOTHING_PX, SMOOTHING_PX)))


def _occlusion(model: FusionModel, forward: Forward, pixels: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    """A window is filled with the mean of the breast around it, so that what is judged is structure, not a hole."""
    channels, height = pixels.shape[2], pixels.shape[3]
    window, stride = max(4, height // WINDOW), max(2, height // WINDOW * STRIDE // 8)
    tissue = (pixels > 0).to(pixels.dtype)
    mean = (pixels * tissue).sum(dim=(3, 4), keepdim=True) / tissue.sum(dim=(3, 4), keepdim=True).clamp(min=1)
    with torch.no_grad():
        found = Occlusion(forward).attribute(
            pixels.detach(), sliding_window_shapes=(1, channels, window, window), strides=(1, channels, stride, stride),
            baselines=(mean * tissue).detach(), additional_forward_args=others,
            perturbations_per_eval=max(1, FILMS_AT_A_TIME // (4 * len(pixels))),
        )  # fmt: skip
    return found.sum(dim=2)  # type: ignore[no-any-return]


_METHODS: Mapping[Method, Callable[[FusionModel, Forward, Tensor, tuple[Tensor, ...]], Tensor]] = {
    "hirescam": _hirescam, "gradcam": _gradcam, "integrated_gradients": _integrated_gradients, "occlusion": _occlusion,
}  # fmt: skip


def _on_canvas(cells_N1hw: Tensor, pixels_BVCHW: Tensor, mask_BV: Tensor) -> Tensor:
    """Maps of the N films that are there -> [B, V, H, W], bilinear."""
    B, V, _, H, W = pixels_BVCHW.shape
    films = mask_BV.flatten().nonzero().squeeze(1)
    assert len(films) == len(cells_N1hw), "captum gave a map for each film that was encoded"
    maps_NHW = functional.interpolate(cells_N1hw.detach(), size=(H, W), mode="bilinear", align_corners=False)[:, 0]
    return maps_NHW.new_zeros(B * V, H, W).index_copy(0, films, maps_NHW).view(B, V, H, W)


@contextmanager
def _ready(model: FusionModel) -> Iterator[None]:
    """The model on the path that captum needs, as it was afterwards; gradients of parameters are not kept."""
    before = model.training, model.fold_views, model.encoded
    model.eval()
    model.fold_views, model.encoded = True, False
    try:
        yield
    finally:
        model.train(before[0])
        model.fold_views, model.encoded = before[1:]
