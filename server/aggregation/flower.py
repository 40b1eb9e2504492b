"""The coordinator's one adapter to Flower: typed frames out, typed frames back. Called by the round loop.

Layout of a message's content, in both directions (the courier's shim has the same): an ArrayRecord `arrays` with one or
two blocks of packed tensors (:mod:`shared_model.tensors`) and a ConfigRecord `message` whose entry `json` holds the
fields. Where the coordinator signs, the entry `envelope` beside it holds its signature over the request, for each site
its own. Strategies have each tensor as an array of its own, and may add entries beside `json` (server-round,
proximal-mu) that nobody reads. Replies are matched by the id of the request alone: Flower reports a lost node with its
own node id as sender, so the sender proves nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from shared_model.errors import MessageError
from shared_model.messages import (
    MAX_HEADER_BYTES,
    MAX_REPORT_BYTES,
    Arrays,
    EvaluateRequest,
    Frame,
    Request,
    SecureSumRequest,
    TrainRequest,
    parse_message,
)
from shared_model.signed_request import Signable
from shared_model.tensors import pack, split_parts, unpack_parts

__all__ = [
    "ARRAYS", "MESSAGE", "Answer", "Exchange", "Grid", "Signer", "array_record", "quiet_flower", "request_config",
]  # fmt: skip

ARRAYS, MESSAGE, FIELDS, ENVELOPE, WAITED = "arrays", "message", "json", "envelope", "waited"
BLOCK = "mammofed.tensors"
MAX_FIELDS_CHARS = MAX_HEADER_BYTES + MAX_REPORT_BYTES
MESSAGE_TYPES = {"describe": "query.describe", "train": "train", "evaluate": "evaluate",
                 "secure_sum": "query.secure_sum"}  # fmt: skip

Signer = Callable[[str, Signable], bytes]  # (site, request) -> `SignedRequest.to_json`


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one request. bytes_down: sent to the site; bytes_up: received from it.

    frame: the decoded reply, or None with a `failure` code: `late` (nothing by the deadline), `error` (Flower or the
    site's courier failed), `malformed` (the reply is no MammoFed message). `detail` says it in words.
    seconds: from the sending to the reply's arrival here, by this process's clock; None when nothing came. waited: of
    them, what the message waited for its trainer, as its carrier says.
    """

    node: int
    frame: Frame | None
    failure: str
    detail: str
    bytes_down: int
    bytes_up: int
    seconds: float | None = None
    waited: float = 0.0


class Exchange:
    """Sends requests to nodes and collects what came by the deadline; nothing else of Flower's grid is used.

    Args:
        signer: seals each request to train, evaluate or sum for the site that it goes to; None: nothing is signed.
        name_of: name of the party behind a node.
        clock: seconds that only grow.
    """

    def __init__(
        self, grid: Grid, *, signer: Signer | None = None, name_of: Callable[[int], str] = lambda _: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._grid, self._signer, self._name_of, self._clock = grid, signer, name_of, clock
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
        sent, packer = list(messages), _Packer()
        for message in sent:
            message.metadata.ttl = timeout_s
            message.content = packer.content(message.content)
            if self._signer is not None:
                self._seal(message, self._signer)
        sizes = {message.metadata.dst_node_id: _size(message.content) for message in sent}
        began = self._clock()
        with self._arrivals() as arrived:
            replies = list(self._grid.send_and_receive(sent, timeout=timeout_s)) if sent else []
        over = self._clock()
        waiting = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
        answers: dict[int, Answer] = {}
        for reply in replies:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is None or not reply.metadata.reply_to_message_id:
                self.ignored += 1
                continue
            seconds = arrived.get(reply.metadata.reply_to_message_id, over) - began
            answers[node] = _read(reply, node=node, bytes_down=sizes[node], seconds=seconds)
        for node in sizes.keys() - answers.keys():
            answers[node] = Answer(node=node, frame=None, failure="late", bytes_down=sizes[node], bytes_up=0,
                                   detail=f"no reply within {timeout_s:g} s")  # fmt: skip
        return answers

    @contextmanager
    def _arrivals(self) -> Iterator[dict[str, float]]:
        """When each reply arrived, by the id of its request. A grid hands all over when the last is there; Flower's and
        ours fetch them with their own `pull_messages` meanwhile, which is looked at here. Of another grid the end
        counts."""
        pull, arrived = self._grid.pull_messages, dict[str, float]()

        def look(message_ids: Iterable[str]) -> Iterable[Message]:
            found = list(pull(message_ids))
            for reply in found:
                arrived.setdefault(reply.metadata.reply_to_message_id, self._clock())
            return found

        self._grid.pull_messages = look  # type: ignore[method-assign]
        try:
            yield arrived
        finally:
            del self._grid.pull_messages  # what the class has is there again

    def _seal(self, message: Message, signer: Signer) -> None:
        """Give a request its envelope, in a content of its own: strategies use one for all sites. The record of the
        weights stays shared."""
        fields = message.content.config_records[MESSAGE]
        request = parse_message(str(fields[FIELDS]))
        if isinstance(request, TrainRequest | EvaluateRequest | SecureSumRequest):
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


class _Packer:
    """Packs the named arrays that strategies have into the blocks that travel; for the messages of one delivery.

    What many messages share is packed once and stays one object, which Flower stores once.
    """

    def __init__(self) -> None:
        self._records: dict[tuple[int, ...], ArrayRecord] = {}
        self._blocks: dict[tuple[int, ...], Array] = {}

    def content(self, content: RecordDict) -> RecordDict:
        """A message's content as it travels."""
        if ARRAYS not in content.array_records:
            return content
        record = content.array_records[ARRAYS]
        key = tuple(map(id, record.values()))
        if key not in self._records:
            parts = split_parts(record)
            self._records[key] = ArrayRecord({part: self._block(arrays) for part, arrays in parts.items()})
        return RecordDict({**content, ARRAYS: self._records[key]})

    def _block(self, arrays: Mapping[str, Array]) -> Array:
        key = tuple(map(id, arrays.values()))
        if key not in self._blocks:
            data = pack({name: array.numpy() for name, array in arrays.items()})
            self._blocks[key] = Array("uint8", (len(data),), BLOCK, data)
        return self._blocks[key]


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


def _read(reply: Message, *, node: int, bytes_down: int, seconds: float) -> Answer:
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
    waited = 0.0 if reply.has_error() else _waited(reply.content)
    return Answer(node=node, frame=frame, failure=failure, detail=detail, bytes_down=bytes_down, bytes_up=received,
                  seconds=seconds, waited=waited)  # fmt: skip


def _waited(content: RecordDict) -> float:
    """What the carrier says that the message waited; 0 where it says nothing, or no such number."""
    found = content.config_records.get(MESSAGE, ConfigRecord()).get(WAITED)
    return found if isinstance(found, float) and math.isfinite(found) and found > 0 else 0.0


def _frame(content: RecordDict) -> Frame:
    text = content.config_records.get(MESSAGE, ConfigRecord()).get(FIELDS)
    if not isinstance(text, str) or len(text) > MAX_FIELDS_CHARS:
        raise MessageError("reply without the fields of a MammoFed message")
    if set(content.array_records) - {ARRAYS}:
        raise MessageError("reply with unknown array records", expected=ARRAYS)
    record = content.array_records.get(ARRAYS, ArrayRecord())
    return Frame(parse_message(text), unpack_parts({part: array.data for part, array in record.items()}))
