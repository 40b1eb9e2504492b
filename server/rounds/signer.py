"""Signs the requests of a study with the coordinator's key; made by the ServerApp, used by the exchange."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Final, TypedDict

from server.aggregation.flower import Signer
from shared_model.protocol import Protocol
from shared_model.signed_protocol import Coordinator
from shared_model.signed_request import Signable, SignedRequest
from shared_model.signing import SigningKey

ONE_MACHINE: Final = "one-machine"  # name of the coordinator where one machine plays all parties


class OneMachine(TypedDict):
    """Keyword arguments of `run_study`: nothing is signed but where a secure sum needs it."""

    signer: Signer | None
    signing: SigningKey | None


def request_signer(key: SigningKey, *, name: str) -> Signer:
    """A function that signs a request for a site as coordinator `name`, for the release that is installed here."""
    release = version("mammofed")

    def sign(site: str, request: Signable) -> bytes:
        return SignedRequest.sign(request, site=site, release=release, name=name, key=key).to_json()

    return sign


def one_machine_key(run_dir: Path) -> SigningKey:
    """The coordinator's key of a study with a secure sum whose parties all live on one machine; made on first use.

    Raises:
        SignatureError, StorageError: it cannot be read or made.
    """
    path = run_dir / "coordinator.key"
    return SigningKey.load(path) if path.exists() else SigningKey.create(path)


def one_machine_coordinator(run_dir: Path) -> Coordinator:
    """Whom the parties of such a study are enrolled with."""
    return Coordinator.of(ONE_MACHINE, one_machine_key(run_dir).public)


def one_machine_signing(protocol: Protocol, run_dir: Path) -> OneMachine:
    """What :func:`server.rounds.loop.run_study` is given where one machine plays all parties."""
    if not protocol.summed:
        return {"signer": None, "signing": None}
    key = one_machine_key(run_dir)
    return {"signer": request_signer(key, name=ONE_MACHINE), "signing": key}
