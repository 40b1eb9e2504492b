"""Finds what `site gain` needs at an enrolled site: the released model, and the approved protocol that it came of.

A study's model does not come over the wire: the coordinator makes a folder (`mammofed server release`) and hands it to
its sites on any way. Lying in HOME/models it is found by itself. Who signed it must be the coordinator whom this site
enrolled with, and its protocol one that this site approved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from client.deploy.home import SiteHome
from client.gain.study import Study, read_object, read_weights
from client.trainer.config import SiteConfig
from client.trainer.site import release as installed
from shared_model.errors import ConfigError, ProtocolError, StorageError
from shared_model.passport import Vouched
from shared_model.protocol import Protocol
from shared_model.released import INITIAL, RELEASE, ReleasedModel
from shared_model.signed_protocol import SignedProtocol

MODELS = "models"
ASK = ("ask the coordinator for the folder that `mammofed server release` makes, and give it as --model FOLDER, or put "
       "it into {place}")  # fmt: skip


def study_at_home(place: Path, *, model: Path | None, initial: Path | None, summary: Path | None) -> Study:
    """The study whose model is given, or lies in HOME/models.

    Args:
        model: a released folder, or weights alone; None: the only one in HOME/models. initial, summary: instead of
            what lies in the folder.

    Raises:
        ConfigError: no home, nothing was approved, or there is no model or more than one.
        SignatureError, PassportError: the coordinator of this site did not sign it, or it was changed.
        ProtocolError: of a study that this site did not approve. WeightsError, StorageError: damaged.
    """
    if not (place / "policy.yaml").exists():
        raise ConfigError(f"{place} is neither a site's home nor a run directory",
                          expected="policy.yaml, protocol.json or evidence.json in it")  # fmt: skip
    config = SiteHome.open(place).trainer_config()
    chosen = model or _only(place / MODELS)
    if not chosen.is_dir():
        return Study(
            config=config, protocol=_approved(config, _named_in(chosen), chosen), model=read_weights(chosen),
            initial=None if initial is None else read_weights(initial),
            summary={} if summary is None else read_object(summary), vouched=Vouched(),
        )  # fmt: skip
    key = config.coordinator.verify_key if config.coordinator is not None else None
    released = ReleasedModel.read(chosen, key=key)
    start = initial or chosen / INITIAL
    return Study(
        config=config, protocol=_approved(config, {released.protocol.sha256}, chosen), model=released.weights,
        initial=read_weights(start) if start.exists() else None,
        summary=_as_summary(released) if summary is None else read_object(summary), vouched=released.vouched,
    )  # fmt: skip


def _as_summary(released: ReleasedModel) -> Mapping[str, Any]:
    """The one thing that a gain takes from a summary: the coordinator's threshold."""
    return {"metrics": {"held_out": {"models": {"fused": {"threshold": released.release.thresholds["fused"]}}}}}


def _only(folder: Path) -> Path:
    found = sorted(path.parent for path in folder.glob(f"*/{RELEASE}"))
    if not found:
        raise ConfigError("the study's model is not here: it is not sent by itself", found=f"nothing in {folder}",
                          expected="a released model", remedy=ASK.format(place=folder / "STUDY"))  # fmt: skip
    if len(found) > 1:
        raise ConfigError(f"several models lie in {folder}", found=", ".join(path.name for path in found),
                          remedy=f"name one, say --model {found[-1]}")  # fmt: skip
    return found[0]


def _approved(config: SiteConfig, named: set[str], model: Path) -> Protocol:
    """The approved protocol of one of these hashes."""
    for protocol in _protocols(config):
        if any(protocol.sha256 in value for value in named):
            return protocol
    raise ProtocolError(f"{model} is of a study that {config.site} did not approve", found=sorted(named)[:3],
                        remedy="give the model of an approved study")  # fmt: skip


def _protocols(config: SiteConfig) -> Iterator[Protocol]:
    for path in sorted(config.protocols.glob("*.json")):
        if config.coordinator is None:
            yield Protocol.read(path)
        else:
            yield SignedProtocol.read(path, coordinator=config.coordinator, release=installed()).protocol


def _named_in(model: Path) -> set[str]:
    """What the metadata of a weights file says of its study."""
    with model.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        head = stream.read(min(size, 1 << 20))
    try:
        return {str(value) for value in json.loads(head)["__metadata__"].values()}
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise StorageError(f"{model} does not say of which study it is", expected="a model of this software",
                           remedy="give the released folder instead of the file") from None  # fmt: skip
