"""The Flower ClientApp that the courier runs: a shim that hands each message to the trainer and returns the reply.

Flower starts it, ships it, and may start a fresh process for every message, so it imports no torch and keeps no state:
the patients, the model and the privacy ledger are the trainer's, on the other side of a Unix socket that only typed,
bounded messages cross. Layout of a Flower message here: `content["message"]` is a ConfigRecord `{"json": fields}`,
where a coordinator signs also `envelope` (bytes, which pass through unread), `content["arrays"]` an ArrayRecord of
one or two blocks of packed tensors (:mod:`shared_model.tensors`; absent when there are none). In a reply `waited` says
for how many seconds the message waited here for its trainer. The site's own node configuration gives `trainer-socket`
and `site`.
"""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.trainer.client import POLL_S, call, wait_for
from shared_model.errors import ConfigError, MammoFedError, MessageError, TrainerError
from shared_model.messages import ErrorReply, Frame, decode, encode, parse_message
from shared_model.tensors import pack_parts, unpack_parts

MESSAGE, ARRAYS, JSON, ENVELOPE, WAITED = "message", "arrays", "json", "envelope", "waited"
SOCKET_KEY, SITE_KEY = "trainer-socket", "site"
BLOCK = "mammofed.tensors"
# A trainer that was killed is back within some seconds (its supervisor, the import of torch). Without waiting for it,
# all attempts of a round would be used up before that: a shim that fails, fails at once.
PATIENCE_S = 30.0
MAX_SKEW_S = 5.0  # Flower's SuperLink refuses a site whose clock is that much ahead; this is the other direction

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of local training."""
    return forward(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """One evaluation."""
    return forward(message, context)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Who is this site, and which studies has it approved?"""
    return forward(message, context)


@app.query("secure_sum")
def secure_sum(message: Message, context: Context) -> Message:
    """One step of a secure sum."""
    return forward(message, context)


def forward(message: Message, context: Context) -> Message:
    """Flower message -> frame -> trainer -> frame -> Flower reply. Failures come back as an `ErrorReply`, in words."""
    waited = 0.0
    try:
        socket, site = _node(context)
        left = _time_left(message, site)
        request = encode(frame_of(message.content))
        waited = wait_for(socket, min(PATIENCE_S, left))
        reply = decode(call(socket, site, request, max(left - waited, POLL_S)))
    except MammoFedError as error:
        reply = Frame(ErrorReply(code=error.exit_code, reason=str(error)[:500]))
    content = content_of(reply)
    content.config_records[MESSAGE][WAITED] = round(waited, 3)  # of the courier's own time: nothing of the training's
    return Message(content, reply_to=message)


def _time_left(message: Message, site: str) -> float:
    """Seconds until nobody waits for the reply any more.

    Raises:
        TrainerError: the time is over, or by this machine's clock the message was not written yet.
    """
    now, written = time.time(), message.metadata.created_at
    if written > now + MAX_SKEW_S:
        raise TrainerError(
            f"the message for {site} comes from the future; it was not handed on: this site's clock is behind",
            found=f"{written - now:.1f} s", expected=f"at most {MAX_SKEW_S:g} s",
            remedy="set this machine's clock by NTP; if it is right, the coordinator's is ahead",
        )  # fmt: skip
    left = written + message.metadata.ttl - now
    if left <= 0:
        raise TrainerError(
            f"the message for {site} has outlived its time; it was not handed on", found=f"{-left:.1f} s too late",
            remedy="check the connection, and set the clocks of both sides by NTP: this one may be ahead",
        )  # fmt: skip
    return left


def frame_of(content: RecordDict) -> Frame:
    """Content that is not trusted -> frame.

    Raises:
        MessageError: records, types or sizes are not those of a MammoFed message.
    """
    try:
        fields = content.config_records[MESSAGE]
        text, envelope = fields[JSON], fields.get(ENVELOPE)
    except KeyError:
        raise MessageError("no MammoFed message", expected=f"a config record {MESSAGE!r} with {JSON!r}") from None
    if not isinstance(text, str):
        raise MessageError("no MammoFed message", found=type(text).__name__, expected="JSON text")
    if not isinstance(envelope, bytes | None):
        raise MessageError("no MammoFed message: its envelope is of a wrong type", found=type(envelope).__name__,
                           expected="bytes")  # fmt: skip
    record = content.array_records.get(ARRAYS, ArrayRecord())
    arrays = unpack_parts({part: array.data for part, array in record.items()})
    return Frame(parse_message(text), arrays, envelope)


def content_of(frame: Frame) -> RecordDict:
    """Frame -> content of a Flower message."""
    fields = ConfigRecord({JSON: frame.message.model_dump_json()})
    if frame.envelope is not None:
        fields[ENVELOPE] = frame.envelope
    content = RecordDict({MESSAGE: fields})
    if frame.arrays:
        content[ARRAYS] = ArrayRecord({part: block(data) for part, data in pack_parts(frame.arrays).items()})
    return content


def block(data: bytes) -> Array:
    """A Flower array that is a block of packed tensors."""
    return Array("uint8", (len(data),), BLOCK, data)


def _node(context: Context) -> tuple[Path, str]:
    socket, site = context.node_config.get(SOCKET_KEY), context.node_config.get(SITE_KEY)
    if not isinstance(socket, str) or not isinstance(site, str):
        raise ConfigError("the courier's node configuration is incomplete", found=sorted(context.node_config),
                          expected=[SOCKET_KEY, SITE_KEY])  # fmt: skip
    return Path(socket), site
