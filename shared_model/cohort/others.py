"""What a site has of a further modality, beside its cohort: one file a modality; written by the site, read by Cohort.

    <cohort>.others/<modality>.safetensors   values float32 [N, ...], mask uint8 [N], in the order of the cohort's
                                             patients; its metadata name the cohort's content

A file is good for the one import that it was written for: another content may have other patients at its places.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared_model.errors import CohortError
from shared_model.private_files import make_private_folder, remove_private, write_private

if TYPE_CHECKING:
    from shared_model.cohort.cohort import Cohort

MAX_BYTES = 4 << 30
OTHER_IMPORT = "was written for another import of the cohort"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_AGAIN = "write it again after each import: `shared_model.cohort.others.write_other`"


@dataclass(frozen=True)
class Other:
    """values: float32 [N, ...], zeros where the patient has none. mask: bool [N]."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]


def others_folder(cohort: Path) -> Path:
    """Where a cohort's further modalities lie."""
    return cohort.with_name(f"{cohort.name}.others")


def write_other(cohort: Cohort, name: str, values: Mapping[str, NDArray[np.float32]]) -> Path:
    """Write what a site has of a modality.

    Args:
        name: as the protocol names it. values: by pseudonym, finite and all of one shape; who is not in it has none.

    Raises:
        CohortError: a wrong name, nobody, values of different shapes or that are no numbers, or a patient who is not in
            the cohort. StorageError: the disk refuses.
    """
    if not _NAME.fullmatch(name):
        raise CohortError("a modality of a wrong name", expected="lower-case letters, digits, `-` and `_`")
    shapes = {np.shape(value) for value in values.values()}
    strangers = len(values.keys() - set(cohort.pseudonyms))
    if len(shapes) != 1 or strangers:
        raise CohortError(f"{name}: not what a cohort can hold", found=f"{len(shapes)} shapes, {strangers} strangers",
                          expected="values of one shape, of the cohort's patients")  # fmt: skip
    table = np.zeros((len(cohort), *shapes.pop()), dtype=np.float32)
    mask = np.zeros(len(cohort), dtype=np.uint8)
    for row, pseudonym in enumerate(cohort.pseudonyms):
        if pseudonym in values:
            table[row], mask[row] = values[pseudonym], 1
    if not np.isfinite(table).all():
        raise CohortError(f"{name}: values that are no numbers", expected="finite ones; leave a patient out instead")
    folder = others_folder(cohort.path)
    make_private_folder(folder)
    path = folder / f"{name}.safetensors"
    write_private(path, save({"values": table, "mask": mask}, metadata={"cohort": cohort.content_sha256}))
    return path


def read_others(cohort: Cohort) -> tuple[dict[str, Other], dict[str, CohortError]]:
    """All further modalities of a cohort by name, and why others cannot be used: a file that is damaged, of another
    form or of another import must stop the studies that name it, and no other."""
    found: dict[str, Other] = {}
    faults: dict[str, CohortError] = {}
    for path in sorted(others_folder(cohort.path).glob("*.safetensors")):
        try:
            found[path.stem] = _read(path, cohort)
        except CohortError as error:
            faults[path.stem] = error
    return found, faults


def drop_stale(cohort: Cohort) -> list[str]:
    """Remove what was written for another import: a woman who left the cohort must not stay in it. Names of modalities.

    Raises:
        StorageError: the disk refuses.
    """
    gone = [name for name, error in read_others(cohort)[1].items() if error.problem.endswith(OTHER_IMPORT)]
    for name in gone:
        remove_private(others_folder(cohort.path) / f"{name}.safetensors")
    return gone


def _read(path: Path, cohort: Cohort) -> Other:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CohortError(f"{path} is too large", expected=f"at most {MAX_BYTES} bytes")
        data = path.read_bytes()
        stated = _metadata(data)
        arrays = load(data)
        values, mask = arrays["values"], arrays["mask"]
    except OSError as error:
        raise CohortError(f"{path} cannot be read: {error.strerror}", remedy=_AGAIN) from None
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CohortError(f"{path} is damaged: {type(error).__name__}", remedy=_AGAIN) from None
    if stated != cohort.content_sha256:
        raise CohortError(f"{path} {OTHER_IMPORT}", found=stated[:16],
                          expected=cohort.content_sha256[:16], remedy=_AGAIN)  # fmt: skip
    right = values.dtype == np.float32 and mask.dtype == np.uint8 and mask.shape == (len(cohort),)
    if not right or values.shape[:1] != mask.shape or mask.max(initial=0) > 1 or not np.isfinite(values).all():
        raise CohortError(f"{path} is of another form", found=f"{values.dtype}{list(values.shape)}",
                          expected=f"float32[{len(cohort)}, ...], finite", remedy=_AGAIN)  # fmt: skip
    return Other(values, mask.astype(np.bool_))


def _metadata(data: bytes) -> str:
    """The content hash that a safetensors file names: its header is JSON behind eight bytes of length."""
    (size,) = struct.unpack_from("<Q", data)
    return str(json.loads(data[8 : 8 + min(size, 1 << 20)])["__metadata__"]["cohort"])
