"""A site's own copy of the tensors that the protocol leaves to each site, round by round; used by `train`, `evaluate`.

* `fedbn_like`: scale and shift of every norm layer. FedBN (Li et al. 2021, https://arxiv.org/abs/2102.07623) keeps
  batch normalisation at home; here norms are per patient (GroupNorm, LayerNorm) without statistics, so only their
  affine parameters are left of it, hence the name.
* `head`: the last layers of each branch, image and clinical head and the joint's head. FedPer (Arivazhagan et al. 2019,
  https://arxiv.org/abs/1912.00818); FedRep (Collins et al. 2021, https://arxiv.org/abs/2102.07078) trains them apart.

A round starts from the shared tensors that came, and from the site's own personal ones of its latest round before. What
goes back for a personal tensor is what came plus the site's *step*, `came + (trained - started)`: the noised update and
nothing else, so that the privacy account and the coordinator's bound hold unchanged, and so that the coordinator has a
generic copy, the sites' average step, for women of hospitals that have no copy (the held-out cohort is one). The papers
have no answer for an unseen hospital.

Copies are written durably before the reply is: a repeated request is answered from the stored reply, and an attempt
that was cut short starts from the same copy again, since a round only reads earlier rounds. All rounds' copies stay,
because the study may choose any round's model in the end; they are small (tiny model: norms 3 kB, heads 18 kB).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors
from torch import nn

from shared_model.errors import MessageError, StorageError
from shared_model.fusion import FusionModel
from shared_model.messages import Arrays, check_shapes, weights_sha256
from shared_model.protocol import Protocol

HEADS = ("image_head.", "clinical_head.", "joint.head.")
NORMS = (nn.GroupNorm, nn.LayerNorm)
HEADER_ROOM = 65536  # bytes of a copy beside its tensors
_FILE = re.compile(r"^round-(\d{6})\.safetensors$")

Tensors = dict[str, NDArray[np.float32]]


def personal_names(model: FusionModel, personal: str) -> tuple[str, ...]:
    """Parameters that stay at each site, in the model's order; none for `none`."""
    if personal == "head":
        return tuple(name for name, _ in model.named_parameters() if name.startswith(HEADS))
    if personal == "fedbn_like":
        norms = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
        return tuple(name for name, _ in model.named_parameters() if name.rpartition(".")[0] in norms)
    return ()


class PersonalCopies:
    """One site's copies in one study: `<folder>/round-NNNNNN.safetensors`.

    Args:
        folder: the study's own, in the site's state; made when the first copy is kept.
        model: of the protocol, for names and shapes.
    """

    def __init__(self, folder: Path, protocol: Protocol, model: FusionModel) -> None:
        self._folder, self._protocol_sha256 = folder, protocol.sha256
        names = set(personal_names(model, protocol.federation.personal))
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in names}

    def put_on(self, model: FusionModel, *, up_to: int) -> Tensors:
        """Put the site's copy of its latest round up to `up_to` over the generic tensors in `model`, where it has one.

        Returns:
            the personal tensors that `model` has now.

        Raises:
            StorageError: a copy is damaged.
        """
        found = max((number for number in self._rounds() if number <= up_to), default=0)
        copy = self._read(found) if found else {}
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, array in copy.items():
                parameters[name].copy_(torch.from_numpy(array))
        return {name: parameters[name].detach().to("cpu", torch.float32).numpy().copy() for name in self._shapes}

    def make_room(self, round_number: int) -> None:
        """Take the disk space of a copy before anything is charged for the round; :meth:`keep` then uses it.

        Raises:
            StorageError: disk full or not writable.
        """
        if not self._shapes:
            return
        temporary = self._path(round_number).with_suffix(".tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, self._most_bytes())
        except OSError as error:
            raise _no_room(temporary, error, "nothing was charged or trained") from None

    def keep(self, round_number: int, trained: Arrays) -> None:
        """Keep the personal ones among a round's trained tensors, durably, in place of an earlier attempt's.

        Raises:
            StorageError: disk full or not writable; nothing must be sent then.
        """
        if not self._shapes:
            return
        own = {name: trained[name] for name in self._shapes}
        document = {"protocol_sha256": self._protocol_sha256, "round": round_number, "sha256": weights_sha256(own)}
        path = self._path(round_number)
        temporary = path.with_suffix(".tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("r+b" if temporary.exists() else "wb") as stream:  # "wb" would give the room back
                stream.write(save_safetensors(own, metadata={"personal": json.dumps(document, sort_keys=True)}))
                stream.truncate()
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            handle = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(handle)  # the rename itself is durable only then (fsync(2))
            finally:
                os.close(handle)
        except OSError as error:
            raise _no_room(temporary, error, "nothing was sent") from None

    def _rounds(self) -> list[int]:
        if not self._shapes or not self._folder.is_dir():
            return []
        matches = (_FILE.match(path.name) for path in self._folder.iterdir())
        return [int(match.group(1)) for match in matches if match]

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:06d}.safetensors"

    def _most_bytes(self) -> int:
        return 4 * sum(int(np.prod(shape)) for shape in self._shapes.values()) + HEADER_ROOM

    def _read(self, round_number: int) -> Tensors:
        path, what = self._path(round_number), f"the site's own tensors of round {round_number}"
        remedy = "restore the site's state from its backup"
        try:
            size = path.stat().st_size
            if size > self._most_bytes():
                raise StorageError(f"{what} are too large", found=size, expected=self._most_bytes(), remedy=remedy)
            with safe_open(path, framework="numpy") as file:
                document = json.loads((file.metadata() or {}).get("personal", "null"))
                copy = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
            check_shapes(copy, self._shapes)
            typed = all(array.dtype == np.float32 for array in copy.values())
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError, MessageError) as error:
            raise StorageError(f"{what} are damaged: {type(error).__name__}", remedy=remedy) from None
        expected = {"protocol_sha256": self._protocol_sha256, "round": round_number,
                    "sha256": weights_sha256(copy) if typed else ""}  # fmt: skip
        if document != expected:
            raise StorageError(f"{what} are damaged or belong elsewhere", remedy=remedy)
        return copy


def generic(received: Arrays, started: Arrays, trained: Arrays) -> Mapping[str, NDArray[np.float32]]:
    """What goes to the coordinator: trained tensors; for personal ones (those of `started`) what came plus the step.

    Where the site started from what came, that is what was trained, to the bit.
    """
    sent = dict(trained)
    for name, start in started.items():
        if not np.array_equal(start, received[name]):
            sent[name] = np.asarray(received[name] + (trained[name] - start), dtype=np.float32)
    return sent


def _no_room(temporary: Path, error: OSError, what: str) -> StorageError:
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
    return StorageError(f"the site's own tensors could not be kept; {what}", found=error.strerror,
                        remedy="make room on the site's disk and repeat the round")  # fmt: skip
