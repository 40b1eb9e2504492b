"""Checks the SCAFFOLD correction that comes beside a round's weights; called by `train`, used by `training/update`."""

from __future__ import annotations

import numpy as np

from shared_model.errors import MessageError, ProtocolError, WeightsError
from shared_model.messages import Arrays, TrainRequest, check_shapes, weights_sha256
from shared_model.protocol import Protocol


def checked_correction(
    protocol: Protocol, request: TrainRequest, weights: Arrays, correction: Arrays
) -> Arrays | None:
    """The correction, exactly of the shapes of `weights` (checked before); None where the strategy sends none.

    Raises:
        ProtocolError: the protocol's strategy sends none, and there is one; or it does, and there is none.
        MessageError: a tensor is missing, unknown, of another shape, or not finite.
        WeightsError: the tensors are not those that the request names.
    """
    wanted = protocol.federation.strategy == "scaffold"
    if (request.correction_sha256 is not None) != wanted or bool(correction) != wanted:
        found = f"{len(correction)} tensors of a correction"
        raise ProtocolError(f"the request does not fit the strategy {protocol.federation.strategy}", found=found,
                            expected="one for each tensor of the model" if wanted else "none",
                            remedy="use the coordinator of the protocol's release")  # fmt: skip
    if not wanted:
        return None
    check_shapes(correction, {name: array.shape for name, array in weights.items()})
    if not all(np.isfinite(array).all() for array in correction.values()):
        raise MessageError("the correction holds numbers that are not finite")
    found = weights_sha256(correction)
    if found != request.correction_sha256:
        raise WeightsError("the correction was changed on the way", found=found[:12],
                           expected=(request.correction_sha256 or "")[:12])  # fmt: skip
    return correction
