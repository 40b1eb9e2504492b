"""What crosses the socket between the pool and its workers: JSON values, raw pixels behind a view; called by both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from shared_model.errors import ImagingError
from shared_model.imaging.admission import Film
from shared_model.imaging.config import PipelineConfig
from shared_model.imaging.reasons import FilmRefusedError
from shared_model.imaging.view import View


def encode_error(error: ImagingError) -> dict[str, str | None]:
    """Plain values of a refusal."""
    texts = {name: getattr(error, name) for name in ("problem", "reason", "found", "expected", "remedy")}
    encoded = {name: None if value is None else str(value) for name, value in texts.items()}
    return encoded | {"patient_id": error.patient_id if isinstance(error, FilmRefusedError) else None}


def decode_reply(
    header: dict[str, Any], receive: Callable[[], bytes], config: PipelineConfig
) -> View | Film | ImagingError:
    """What a worker answered; `receive` gets the bytes of the pixels that follow a view."""
    if "error" in header:
        values = header["error"]
        patient_id = values.pop("patient_id")
        error = ImagingError(values.pop("problem"), **values)
        return error if patient_id is None else FilmRefusedError(error, patient_id=patient_id)
    if "film" in header:
        values = header["film"]
        return Film(**values | {"order": tuple(values["order"]), "spacing_mm": tuple(values["spacing_mm"])})
    pixels = np.frombuffer(receive(), np.float32).reshape(2, config.height, config.width)
    return View(pixels=pixels, **header["view"])
