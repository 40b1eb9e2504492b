"""The coordinator's one adapter to Flower: typed frames out, typed frames back. Called by the round loop.

Layout of a message's content, in both directions (the courier's shim has the same): an ArrayRecord `arrays` with the
tensors and a ConfigRecord `message` whose entry `json` holds the fields. Where the coordinator signs, the entry
`envelope` beside it holds its signature over the request, for each site its own. Strategies may add entries of their
own beside `json` (server-round, proximal-mu); nobody reads them. Replies are matched by the id of the request alone:
Flower reports a lost node with its own node id as sender, so the sender proves nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from shared_model.errors import MessageError
from shared_model.messages import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_REPORT_BYTES,
    Arrays,
    EvaluateRequest,
    Frame,
    Request,
    TrainRequest,
    parse_message,
)
from shared_model.npy import read_header

__all__ = [
    "ARRAYS", "MESSAGE", "Answer", "Exchange", "Grid", "Signer", "array_record", "arrays_of", "quiet_flower",
    "request_config",
]  # fmt: skip

ARRAYS, MESSAGE, FIELDS, ENVELOPE = "arrays", "message", "json", "envelope"
MAX_TENSORS = 10_000
MAX_FIELDS_CHARS = MAX_HEADER_BYTES + MAX_REPORT_BYTES
MESSAGE_TYPES = {"describe": "query.describe", "train": "train", "evaluate": "evaluate"}

Signer = Callable[[str, TrainRequest | EvaluateRequest], bytes]  # (site, request) -> `SignedRequest.to_json`


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one request. bytes_down: sent to the site; bytes_up: received from it.

    frame: the decoded reply, or None with a `failure` code: `late` (nothing by the deadline), `error` (Flower or the
    site's courier failed), `malformed` (the reply is no MammoFed message). `detail` says it in words.
    """

    node: int
    frame: Frame | None
    failure: str
    detail: str
    bytes_down: int
    bytes_up: int


class Exchange:
    """Sends requests to nodes and collects what came by the deadline; nothing else of Flower's grid is used.

    Args:
        signer: seals each request to train or evaluate for the site that it goes to; None: nothing is signed.
        name_of: name of the party behind a node.
    """

    def __init__(
        self, grid: Grid, *, signer: Signer | None = None, name_of: Callable[[int], str] = lambda _: ""
    ) -> None:
        self._grid, self._signer, self._name_of = grid, signer, name_of
        self.ignored = 0  # replies to nothing that was asked, or a second time; for the journal

    def nodes(self) -> tuple[int, ...]:
        """Ids of the nodes that are connected now, ascending."""
        return tuple(sorted(self._grid.get_node_ids()))

    def ask(self, requests: Mapping[int, Frame], *, timeout_s: float) -> dict[int, Answer]:
        """Send one frame to each node and wait at most `timeout_s` seconds; an answer for each node."""
        records: dict[int, ArrayRecord] = {}  # one frame for many nodes is encoded once
        for frame in requests.values():
            if frame.arrays and id(frame.arrays) not in records:
                records[id(frame.arrays)] = array_record(frame.arrays)
        messages = [_message(frame, node, records.get(id(frame.arrays))) for node, frame in requests.items()]
        return self.deliver(messages, timeout_s=timeout_s)

    def deliver(self, messages: Iterable[Message], *, timeout_s: float) -> dict[int, Answer]:
        """Send prepared messages; answers by node.

        The time to live is the deadline: a request that nobody waits for any more would only cost a site its budget.
        Late replies, second replies and replies to something else are ignored.
        """
        sent = list(messages)
        for message in sent:
            message.metadata.ttl = timeout_s
            if self._signer is not None:
                self._seal(message, self._signer)
        sizes = {message.metadata.dst_node_id: _size(message.content) for message in sent}
        replies = list(self._grid.send_and_receive(sent, timeout=timeout_s)) if sent else []
        waiting = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
        answers: dict[int, Answer] = {}
        for reply in replies:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is None or not reply.metadata.reply_to_message_id:
                self.ignored += 1
                continue
            answers[node] = _read(reply, node=node, bytes_down=sizes[node])
        for node in sizes.keys() - answers.keys():
            answers[node] = Answer(node=node, frame=None, failure="late", bytes_down=sizes[node], bytes_up=0,
                                   detail=f"no reply within {timeout_s:g} s")  # fmt: skip
        return answers

    def _seal(self, message: Message, signer: Signer) -> None:
        """Give a request its envelope, in a content of its own: strategies use one for all sites. The record of the
        weights stays shared."""
        fields = message.content.config_records[MESSAGE]
        request = parse_message(str(fields[FIELDS]))
        if isinstance(request, TrainRequest | EvaluateRequest):
            envelope = signer(self._name_of(message.metadata.dst_node_id), request)
            message.content = RecordDict({**message.content, MESSAGE: ConfigRecord({**fields, ENVELOPE: envelope})})


def quiet_flower() -> None:
    """Keep Flower's log to warnings and on its own handler.

    Importing flwr sets its logger to DEBUG with propagation, so that with any root handler each line appears twice; and
    its INFO lines tear the live view, which tells the same from the journal.
    """
    logger = logging.getLogger("flwr")
    logger.propagate = False
    logger.setLevel(logging.WARNING)


def request_config(request: Request) -> ConfigRecord:
    """The ConfigRecord that carries the fields of a request."""
    return ConfigRecord({FIELDS: request.model_dump_json()})


def array_record(arrays: Arrays) -> ArrayRecord:
    """Named float32 arrays -> ArrayRecord, names sorted."""
    return ArrayRecord({name: Array(np.asarray(arrays[name], dtype="<f4", order="C")) for name in sorted(arrays)})


def arrays_of(record: ArrayRecord) -> dict[str, NDArray[np.float32]]:
    """ArrayRecord that is not trusted -> arrays; nothing is allocated beyond the bytes that came.

    Raises:
        MessageError: too many or too large tensors, another type than float32, or a header that lies about its data.
    """
    if len(record) > MAX_TENSORS or sum(len(array.data) for array in record.values()) > MAX_FRAME_BYTES:
        raise MessageError("tensors are too many or too large", found=f"{len(record)} tensors",
                           expected=f"at most {MAX_TENSORS} with {MAX_FRAME_BYTES} bytes")  # fmt: skip
    return {name: _tensor(name, array) for name, array in record.items()}


def _message(frame: Frame, node: int, arrays: ArrayRecord | None) -> Message:
    content = RecordDict({MESSAGE: request_config(frame.message)})  # type: ignore[arg-type]  # only requests are asked
    if arrays is not None:
        content[ARRAYS] = arrays
    return Message(content, node, MESSAGE_TYPES[frame.message.kind])


def _size(content: RecordDict) -> int:
    """Bytes of the encoded arrays, the fields and their signature; what Flower adds, some hundred bytes, is not
    counted."""
    fields = sum(
        len(str(record.get(FIELDS, ""))) + len(envelope if isinstance(envelope := record.get(ENVELOPE), bytes) else b"")
        for record in content.config_records.values()
    )
    return fields + sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _read(reply: Message, *, node: int, bytes_down: int) -> Answer:
    """Decode one reply; whatever is wrong with it becomes a reason, never an exception."""
    frame, failure, detail, received = None, "", "", 0
    if reply.has_error():
        failure, detail = "error", f"code {reply.error.code}: {reply.error.reason or 'no reason given'}"
    else:
        received = _size(reply.content)
        try:
            frame = _frame(reply.content)
        except MessageError as error:
            failure, detail = "malformed", str(error)
    return Answer(node=node, frame=frame, failure=failure, detail=detail, bytes_down=bytes_down, bytes_up=received)


def _frame(content: RecordDict) -> Frame:
    text = content.config_records.get(MESSAGE, ConfigRecord()).get(FIELDS)
    if not isinstance(text, str) or len(text) > MAX_FIELDS_CHARS:
        raise MessageError("reply without the fields of a MammoFed message")
    if set(content.array_records) - {ARRAYS}:
        raise MessageError("reply with unknown array records", expected=ARRAYS)
    return Frame(parse_message(text), arrays_of(content.array_records.get(ARRAYS, ArrayRecord())))


def _tensor(name: str, array: Array) -> NDArray[np.float32]:
    # Not Array.numpy(): numpy.load allocates what a header claims before it looks at the data (numpy/lib/format.py).
    try:
        header = read_header(array.data)
    except ValueError:
        raise MessageError(f"tensor {name[:80]!r} is damaged") from None
    values = memoryview(array.data)[header.offset :]
    if header.dtype != np.dtype("<f4") or header.size * 4 != len(values):
        found = f"{header.dtype}, {len(values)} bytes"
        raise MessageError(f"tensor {name[:80]!r} is damaged or of a wrong type", found=found,
                           expected=f"float32, {header.size * 4} bytes")  # fmt: skip
    return np.frombuffer(values, dtype="<f4").reshape(header.shape, order="F" if header.fortran else "C")
