"""Weights as named float32 arrays, as they cross the network and lie in checkpoints; used by trainer and launcher."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from shared_model.errors import WeightsError
from shared_model.fusion.model import FusionModel
from shared_model.weights import WeightsInfo, public_weights

Arrays = Mapping[str, NDArray[np.float32]]


def arrays_of(model: FusionModel) -> dict[str, NDArray[np.float32]]:
    """A copy of all parameters by name, float32 on the CPU, in the model's own order."""
    return {name: p.detach().to("cpu", torch.float32).numpy().copy() for name, p in model.named_parameters()}


def load_arrays(model: FusionModel, arrays: Arrays) -> None:
    """Put all parameters in place.

    Raises:
        WeightsError: a name is missing or unknown, a shape is not exactly the parameter's (nothing is broadcast), or a
            number is not finite. The model is unchanged then.
    """
    _put(model, arrays, tuple(name for name, _ in model.named_parameters()))


def load_image_branch(model: FusionModel, arrays: Arrays) -> None:
    """Put the image branch alone in place (what public weights hold); errors as in :func:`load_arrays`."""
    _put(model, arrays, model.image_parameters())


def load_public_weights(model: FusionModel, size: str) -> WeightsInfo:
    """Put the release's public image branch for `size` in place; all else stays as initialised. Gives their card.

    Raises:
        WeightsError: there are none for the size, they are damaged, or the model is of another size.
    """
    arrays, info = public_weights(size)
    load_image_branch(model, arrays)
    return info


@torch.no_grad()
def _put(model: FusionModel, arrays: Arrays, names: tuple[str, ...]) -> None:
    missing, unknown = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
    if missing or unknown:
        raise WeightsError(
            f"weights are not those of a {model.config.size}/{model.config.fusion} model",
            found=f"missing {missing[:3]}, unknown {[name[:80] for name in unknown[:3]]}",
            expected=f"{len(names)} tensors", remedy="use weights of the same size and fusion mode",
        )  # fmt: skip
    parameters = dict(model.named_parameters())
    for name in names:
        array, shape = arrays[name], tuple(parameters[name].shape)
        if array.shape != shape or array.dtype != np.float32:
            raise WeightsError(
                f"tensor {name} is not what the model holds", found=f"{array.dtype} {array.shape}",
                expected=f"float32 {shape}",
            )  # fmt: skip
        if not np.isfinite(array).all():
            raise WeightsError(f"tensor {name} holds numbers that are not finite")
    for name in names:
        parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))
