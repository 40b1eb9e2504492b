"""Signs the requests of a study with the coordinator's key; made by the ServerApp, used by the exchange."""

from __future__ import annotations

from importlib.metadata import version

from server.aggregation.flower import Signer
from shared_model.messages import EvaluateRequest, TrainRequest
from shared_model.signed_request import SignedRequest
from shared_model.signing import SigningKey


def request_signer(key: SigningKey, *, name: str) -> Signer:
    """A function that signs a request for a site as coordinator `name`, for the release that is installed here."""
    release = version("mammofed")

    def sign(site: str, request: TrainRequest | EvaluateRequest) -> bytes:
        return SignedRequest.sign(request, site=site, release=release, name=name, key=key).to_json()

    return sign
