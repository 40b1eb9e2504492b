"""How trainers' public keys get from site to site, and to the person who compares their words.

The trainer writes its public half to `run/trainer.pub`; the courier tells it with each heartbeat; the coordinator hands
it to the other sites of a study; `site review` shows six words of each, and `site approve` keeps what was compared in
`trainer/peers.json`. Nothing on the way is believed but the people on the phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import click

from client.deploy.home import SiteHome
from client.deploy.inbox import Inbox
from client.trainer.peers import read_peers, trainer_key
from shared_model.errors import SignatureError
from shared_model.private_files import write_private
from shared_model.protocol import Protocol
from shared_model.signing import VerifyKey

Standing = Literal["confirmed", "new", "changed", "unknown"]
PUBLISHED = "trainer.pub"


@dataclass(frozen=True, kw_only=True)
class PeerKey:
    """Another site's trainer key as its study needs it. key: as the coordinator hands it out; None: not known yet.

    standing: `changed` where another one was confirmed before, which is an attack or a new installation.
    """

    site: str
    key: VerifyKey | None
    standing: Standing


def publish_key(home: SiteHome) -> VerifyKey:
    """Have the trainer's key made, and write its public half where the courier finds it; run as the trainer's user.

    Raises:
        SignatureError, StorageError: it cannot be read or written.
    """
    key = trainer_key(home.state).public
    path = published(home)
    if not path.exists() or path.read_text() != key.hex:
        write_private(path, key.hex.encode())
        path.chmod(0o644)  # public, and in another user's folder
    return key


def published(home: SiteHome) -> Path:
    """The file of the public half."""
    return home.folder / "run" / PUBLISHED


def read_published(path: Path) -> str | None:
    """64 hexadecimal digits; None where there is no key yet."""
    try:
        with path.open(encoding="ascii", errors="replace") as stream:
            return VerifyKey.from_hex(stream.read(65)).hex
    except (OSError, SignatureError):
        return None


def peer_keys(home: SiteHome, protocol: Protocol) -> list[PeerKey]:
    """The trainer keys of a study's other sites, by name; none where nothing is summed.

    Raises:
        ConfigError, StorageError: this site's list of confirmed keys cannot be read.
    """
    if not protocol.summed:
        return []
    own, known, offered = home.identity().settings.site, read_peers(home.trainer), _offered(home)
    names = sorted(site.name for site in protocol.federation.sites if site.name != own)
    return [PeerKey(site=name, key=offered.get(name, known.get(name)),
                    standing=_standing(offered.get(name), known.get(name))) for name in names]  # fmt: skip


def _standing(offered: VerifyKey | None, known: VerifyKey | None) -> Standing:
    if known is None:
        return "unknown" if offered is None else "new"
    return "confirmed" if offered in (None, known) else "changed"


def _offered(home: SiteHome) -> Mapping[str, VerifyKey]:
    inbox = Inbox(home.courier, site=home.identity().settings.site, release=version("mammofed"))
    found = {}
    for member in inbox.members():
        try:
            if member.trainer is not None:
                found[member.site] = VerifyKey.from_hex(member.trainer)
        except SignatureError:  # as good as none
            continue
    return found


def compare_peers(keys: Sequence[PeerKey], *, told: bool, ask: bool) -> dict[str, VerifyKey]:
    """Keys that a person says to have compared, of those that were not confirmed before.

    Args:
        told: all of them, said on the command line. ask: one by one, at the terminal.
    """
    found = {}
    for peer in keys:
        if peer.key is None or peer.standing == "confirmed":
            continue
        question = f"{peer.site} reads the same six words to you: {peer.key.fingerprint}"
        if peer.standing == "changed":
            question = f"{peer.site} has ANOTHER trainer key than before. {question}"
        if told or (ask and click.confirm(question)):
            found[peer.site] = peer.key
    return found
