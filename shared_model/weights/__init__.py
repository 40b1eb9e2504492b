"""Public weights of the image branch, shipped with the release; read by the launcher, the trainers and pre-training.

`<size>.safetensors` holds encoder, view embedding, view bag and image head; `<size>.json`, its card, says what they
were made from. They were learnt from procedural films alone: no patient's data has any part in them. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from shared_model.errors import StorageError, WeightsError
from shared_model.messages import MAX_FRAME_BYTES, weights_sha256

CARD_VERSION = 1
MAX_CARD_BYTES = 1 << 16
FOLDER = Path(__file__).parent
LICENCE = "Apache-2.0; made from procedural films only, no patient data"

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """The card of a set of public weights.

    size: of the model. sha256: identity of the tensors (`messages.weights_sha256`), as protocols name it.
    file_sha256: of the safetensors file's bytes. recipe: one line. licence. seed. settings: all that the training
    depended on, as plain values. pipeline_sha256: of the imaging steps that the films went through. versions: of the
    libraries. auc, auc_low, auc_high: on `validation_patients` held-out public patients, DeLong, 95 %.
    cpu_seconds: that making them took.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    card_version: int
    size: str
    sha256: str
    file_sha256: str
    recipe: str
    licence: str
    seed: int
    settings: dict[str, Any]
    pipeline_sha256: str
    versions: dict[str, str]
    validation_patients: int
    auc: float
    auc_low: float
    auc_high: float
    cpu_seconds: float


_CARD = TypeAdapter(WeightsInfo)


def public_weights(size: str, *, folder: Path = FOLDER) -> tuple[Arrays, WeightsInfo]:
    """The image branch for a model size, verified against its card.

    Raises:
        WeightsError: there are none for this size, or file and card do not agree.
    """
    card = _read(folder / f"{size}.json", limit=MAX_CARD_BYTES, size=size)
    data = _read(folder / f"{size}.safetensors", limit=MAX_FRAME_BYTES, size=size)
    try:
        info = _CARD.validate_json(card)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:3])
        raise WeightsError(f"the card of the public weights {size} is damaged: {faults}") from None
    found = hashlib.sha256(data).hexdigest()
    if info.card_version != CARD_VERSION or info.size != size or found != info.file_sha256:
        raise WeightsError(
            f"public weights {size} are not those of their card", found=f"version {info.card_version}, {found}",
            expected=f"version {CARD_VERSION}, {info.file_sha256}", remedy="install the release again",
        )  # fmt: skip
    try:
        arrays = load_safetensors(data)
    except SafetensorError as error:
        raise WeightsError(f"public weights {size} are damaged: {error}") from None
    if weights_sha256(arrays) != info.sha256:
        raise WeightsError(f"public weights {size} are not those of their card", expected=info.sha256)
    return arrays, info


def find_public_weights(sha256: str, *, folder: Path = FOLDER) -> tuple[Arrays, WeightsInfo]:
    """Public weights by the identity of their tensors.

    Raises:
        WeightsError: none of this release has it.
    """
    sizes = sorted(path.stem for path in folder.glob("*.json"))
    for size in sizes:
        arrays, info = public_weights(size, folder=folder)
        if info.sha256 == sha256:
            return arrays, info
    raise WeightsError("no public weights of this release have that hash", found=sha256, expected=f"one of {sizes}")


def write_weights(arrays: Arrays, card: dict[str, Any], *, size: str, folder: Path) -> WeightsInfo:
    """Write weights and card beside each other, each whole or not at all; hashes are filled in.

    Raises:
        StorageError: they cannot be written.
    """
    data = save_safetensors(arrays, metadata={"licence": LICENCE})
    info = WeightsInfo(
        card_version=CARD_VERSION, size=size, sha256=weights_sha256(arrays),
        file_sha256=hashlib.sha256(data).hexdigest(), licence=LICENCE, **card,
    )  # fmt: skip
    text = json.dumps(asdict(info), indent=2, sort_keys=True, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ((f"{size}.safetensors", data), (f"{size}.json", text.encode())):
            partial = folder / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(folder / name)
    except OSError as error:
        raise StorageError(f"weights cannot be written to {folder}", found=error.strerror) from error
    return info


def _read(path: Path, *, limit: int, size: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise WeightsError(
            f"there are no public weights for size {size}", found=f"{path.name}: {error.strerror}",
            remedy="set weights=random, or make them with `mammofed pretrain`",
        ) from None  # fmt: skip
    if len(data) > limit:
        raise WeightsError(f"{path.name} is too large", expected=f"at most {limit} bytes")
    return data
