"""The Flower ClientApp that the courier runs: a shim that hands each message to the trainer and returns the reply.

Flower starts it, ships it, and may start a fresh process for every message, so it imports no torch and keeps no state:
the patients, the model and the privacy ledger are the trainer's, on the other side of a Unix socket that only typed,
bounded messages cross. Layout of a Flower message here: `content["message"]` is a ConfigRecord `{"json": fields}`,
where a coordinator signs also `envelope` (bytes, which pass through unread), `content["arrays"]` an ArrayRecord of
float32 tensors (absent when there are none). The site's own node configuration gives `trainer-socket` and `site`.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.trainer.client import call
from shared_model.errors import ConfigError, MammoFedError, MessageError, TrainerError
from shared_model.messages import MAX_FRAME_BYTES, ErrorReply, Frame, decode, encode, parse_message
from shared_model.npy import read_header

MESSAGE, ARRAYS, JSON, ENVELOPE = "message", "arrays", "json", "envelope"
SOCKET_KEY, SITE_KEY = "trainer-socket", "site"
MAX_TENSORS = 10_000
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


def forward(message: Message, context: Context) -> Message:
    """Flower message -> frame -> trainer -> frame -> Flower reply. Failures come back as an `ErrorReply`, in words."""
    try:
        socket, site = _node(context)
        left = _time_left(message, site)
        reply = decode(call(socket, site, encode(frame_of(message.content)), left, patience=PATIENCE_S))
    except MammoFedError as error:
        reply = Frame(ErrorReply(code=error.exit_code, reason=str(error)[:500]))
    return Message(content_of(reply), reply_to=message)


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
    if len(record) > MAX_TENSORS or sum(len(array.data) for array in record.values()) > MAX_FRAME_BYTES:
        raise MessageError("message is too large", found=f"{len(record)} tensors", expected=f"{MAX_FRAME_BYTES} bytes")
    return Frame(parse_message(text), {name: _tensor(name, array) for name, array in record.items()}, envelope)


def content_of(frame: Frame) -> RecordDict:
    """Frame -> content of a Flower message."""
    fields = ConfigRecord({JSON: frame.message.model_dump_json()})
    if frame.envelope is not None:
        fields[ENVELOPE] = frame.envelope
    content = RecordDict({MESSAGE: fields})
    if frame.arrays:
        content[ARRAYS] = ArrayRecord({name: Array(np.asarray(array)) for name, array in frame.arrays.items()})
    return content


def _tensor(name: str, array: Array) -> NDArray[np.float32]:
    """The float32 values of a Flower array, in C order.

    Flower's own `Array.numpy` lets `numpy.load` allocate what the header claims; here the claim is first compared with
    the bytes that are there. Format: numpy/lib/format.py, version 1.0, as `Array` writes it.
    """
    try:
        header = read_header(array.data)
    except ValueError:
        raise MessageError(f"tensor {name[:80]} is damaged") from None
    values = memoryview(array.data)[header.offset :]
    if header.dtype != np.dtype("<f4") or header.size * 4 != len(values):
        found = f"{header.dtype}, {len(values)} bytes"
        raise MessageError(f"tensor {name[:80]} is damaged or of a wrong type", found=found,
                           expected=f"float32, {header.size * 4} bytes")  # fmt: skip
    return np.frombuffer(values, dtype="<f4").reshape(header.shape, order="F" if header.fortran else "C")


def _node(context: Context) -> tuple[Path, str]:
    socket, site = context.node_config.get(SOCKET_KEY), context.node_config.get(SITE_KEY)
    if not isinstance(socket, str) or not isinstance(site, str):
        raise ConfigError("the courier's node configuration is incomplete", found=sorted(context.node_config),
                          expected=[SOCKET_KEY, SITE_KEY])  # fmt: skip
    return Path(socket), site
