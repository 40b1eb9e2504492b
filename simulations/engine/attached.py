"""The local grid's side of trainers that somebody else runs, and couriers that tamper with replies; for `faults`.

`TrainerPool` starts trainers and starts them again. Here they are processes of somebody else's, found by their sockets,
which live and die on their own, as at real sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.app import ARRAYS, JSON, MESSAGE, SITE_KEY, block, content_of, frame_of
from client.app import app as courier
from shared_model.messages import ErrorReply, Frame

Tamper = Callable[[str, Frame, Frame], "Frame | Raw | None"]  # site, request, reply -> another reply; None: leave it


__all__ = ["AttachedTrainers", "Raw", "Tamper", "clock_ahead", "courier", "refusing", "tampering"]


@dataclass(frozen=True)
class Lane:
    """One party's socket; each has a lane of its own."""

    index: int
    socket: Path


@dataclass(frozen=True)
class Raw:
    """A reply that is no frame: any text where the fields belong, any bytes where a block of tensors belongs."""

    text: str
    blocks: Mapping[str, bytes]


class AttachedTrainers:
    """Stands where a `TrainerPool` stands. sockets: of each party by name, in the order of their node ids from 1."""

    def __init__(self, sockets: Mapping[str, Path]) -> None:
        self._lanes = {name: Lane(index, path) for index, (name, path) in enumerate(sockets.items())}
        self.trainers = tuple(self._lanes.values())
        self.nodes: Mapping[int, str] = dict(enumerate(sockets, start=1))

    def trainer(self, site: str) -> Lane:
        """The lane of a party."""
        return self._lanes[site]

    def ensure(self, lane: Lane) -> None:
        """Nothing: bringing a trainer up again is its own supervisor's work, and the courier waits for it."""


def tampering(tamper: Tamper) -> Callable[[Message, Context], Message]:
    """The courier's app, and `tamper` between it and the coordinator."""

    def app(message: Message, context: Context) -> Message:
        reply = courier(message, context)
        request, found = frame_of(message.content), frame_of(reply.content)
        changed = tamper(str(context.node_config[SITE_KEY]), request, found)
        if changed is None:
            return reply
        content = _raw_content(changed) if isinstance(changed, Raw) else content_of(changed)
        return Message(content, reply_to=message)

    return app


def clock_ahead(site: str, *, seconds: float) -> Callable[[Message, Context], Message]:
    """The courier's app at a site whose clock is `seconds` ahead: every message looks that much older to it."""

    def app(message: Message, context: Context) -> Message:
        if context.node_config[SITE_KEY] == site:
            message.metadata.created_at -= seconds
        return courier(message, context)

    return app


def _raw_content(raw: Raw) -> RecordDict:
    content = RecordDict({MESSAGE: ConfigRecord({JSON: raw.text})})
    content[ARRAYS] = ArrayRecord({part: block(data) for part, data in raw.blocks.items()})
    return content


def refusing(reason: str) -> Frame:
    """What a site says that cannot take part in a round."""
    return Frame(ErrorReply(code=50, reason=reason))
