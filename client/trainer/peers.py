"""The trainer's own signing key, and the keys of other sites' trainers that this site's administrator has confirmed.

    <trainer>/state/audit.key   born here, leaves nowhere; signs the audit log and this site's part in secure sums
    <trainer>/peers.json        by site, the public key whose six words were compared with that site's people

The coordinator hands the public keys out and is not believed: with an invented peer it could read a sum of three as the
values of one. Written by `site approve` and by the simulator, which is everybody; read by the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_model.errors import ConfigError, SignatureError
from shared_model.private_files import make_private_folder, read_private, write_private
from shared_model.protocol import Name, Sha256
from shared_model.secagg.session import MAX_SITES
from shared_model.signing import SigningKey, VerifyKey

KEY_FILE, PEERS_FILE = "audit.key", "peers.json"
Confirmed = Mapping[str, VerifyKey]
NOBODY: Final[Confirmed] = {}


class _Peers(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    peers: Annotated[dict[Name, Sha256], Field(max_length=4 * MAX_SITES)]


def trainer_key(state: Path) -> SigningKey:
    """The signing key of the trainer whose state lies there; born on the first call.

    Raises:
        SignatureError, StorageError: it cannot be read or made.
    """
    path = state / KEY_FILE
    if path.exists():
        return SigningKey.load(path)
    make_private_folder(state)
    return SigningKey.create(path)


def read_peers(trainer: Path) -> dict[str, VerifyKey]:
    """Confirmed keys by site; none where nothing was confirmed.

    Raises:
        ConfigError: the file is damaged. StorageError: others may write or read it.
    """
    path = trainer / PEERS_FILE
    if not path.exists():
        return {}
    try:
        stored = _Peers.model_validate_json(read_private(path))
        return {site: VerifyKey.from_hex(key) for site, key in stored.peers.items()}
    except (ValidationError, SignatureError):
        raise ConfigError(f"{path} is damaged", remedy="compare the six words again and approve the study anew"
                          ) from None  # fmt: skip


def confirm_peers(trainer: Path, keys: Confirmed) -> None:
    """Add keys whose words were compared; a site's earlier key is replaced.

    Raises:
        ConfigError, StorageError: the file is damaged or cannot be written.
    """
    known = read_peers(trainer) | dict(keys)
    document = _Peers(peers={site: key.hex for site, key in sorted(known.items())})
    write_private(trainer / PEERS_FILE, document.model_dump_json().encode())
