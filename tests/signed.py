"""A small study whose parties are enrolled with one coordinator, and requests under its signature."""

from __future__ import annotations

from typing import Any

from client.trainer.config import SiteConfig
from shared_model.messages import EvaluateRequest, TrainRequest
from shared_model.signed_protocol import Coordinator, SignedProtocol
from shared_model.signed_request import SignedRequest
from shared_model.signing import SigningKey

NAME = "consortium"
KEY = SigningKey.generate()
COORDINATOR = Coordinator.of(NAME, KEY.public)


def enrol(study: Any, **policy: Any) -> Any:
    """Lay the study's parties out anew: its protocol under the coordinator's signature, the coordinator and `policy` in
    each `site.json`."""
    for path in study.files.values():
        signed = SignedProtocol.sign(study.protocol, name=NAME, key=KEY)
        (path.parent / "protocols" / "approved.json").write_text(signed.to_json())
        config = SiteConfig.read(path).model_copy(update={"coordinator": COORDINATOR, **policy})
        path.write_text(config.to_json())
    return study


def seal(request: TrainRequest | EvaluateRequest, site: str = "site-01", *, key: SigningKey = KEY) -> bytes:
    """The envelope that the coordinator would send beside `request`."""
    return SignedRequest.sign(request, site=site, release="0.1.0", name=NAME, key=key).to_json()
