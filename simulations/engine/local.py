"""The local engine: Flower's public `Grid` in front of a pool of trainer processes on this machine; for the launcher.

The server loop, the strategies and the real ClientApp run on it unchanged; only the network between them is left out.
Each trainer process has one lane, so that one request at a time is under way in a process, and lanes run side by side.

Flower 1.41 gives no public way to make messages outside of its own processes. The two private spots that this takes are
in :func:`_identify` and :func:`_number`, nowhere else, and a test holds them against the pinned version.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal
from typing import Protocol as Interface

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import MESSAGE, SITE_KEY, SOCKET_KEY, WAITED
from client.app import app as courier
from shared_model.errors import MammoFedError, TrainerError

if TYPE_CHECKING:
    from flwr.supercore.run import Run

RUN_ID = 1
SERVER_NODE = 0        # no site has it: nodes are numbered from 1
APP_RAISED, NODE_UNAVAILABLE = 2, 5  # flwr.common.constant.ErrorCode
SLACK_S = 1.0          # a shim's own wait ends this long after the grid's, so that a late site is absent and not failed


@dataclass(frozen=True)
class GridEvent:
    """A message's delivery to one party, for the live view.

    message_type: `train`, `evaluate` or `query.describe`. group: Flower's group id (the round). seconds: since it was
        started. bytes_up, bytes_down: content from and to the site (0 while unknown). failed: an error came back.
    """

    kind: Literal["started", "finished"]
    site: str
    message_type: str
    group: str
    seconds: float
    bytes_up: int
    bytes_down: int
    failed: bool = False


class Trainers(Interface):
    """What the grid needs of a pool of trainers: processes (`pool`) or this very process (`library`)."""

    nodes: Mapping[int, str]

    @property
    def trainers(self) -> Sequence[Any]:
        """The lanes."""

    def trainer(self, site: str) -> Any:
        """The lane of a site; it has an `index` and a `socket`."""

    def ensure(self, lane: Any) -> None:
        """Bring a lane up again if it died; raises a MammoFedError when it does not come."""


class LocalGrid(Grid):
    """See the module.

    Args:
        pool: started trainers; its `nodes` are this grid's (sites by name from 1, the evaluator last).
        app: the ClientApp to run, or anything else that answers a message.
        observer: called at the start and end of each delivery, from several threads.
    """

    def __init__(
        self, pool: Trainers, *, app: Callable[[Message, Context], Message] = courier,
        observer: Callable[[GridEvent], None] | None = None,
    ) -> None:  # fmt: skip
        _identify()
        self._pool, self._app, self._observer = pool, app, observer
        self._contexts = {
            node: Context(RUN_ID, node, {SOCKET_KEY: str(pool.trainer(site).socket), SITE_KEY: site}, RecordDict(), {})
            for node, site in pool.nodes.items()
        }
        self._lanes = {t.index: ThreadPoolExecutor(1, f"lane-{t.index}") for t in pool.trainers}
        self._replies: dict[str, Future[Message]] = {}
        self._numbers, self._lock = count(1), threading.Lock()
        self._run: Run | None = None

    @property
    def run(self) -> Run:
        """The Flower run, where somebody has set one (nothing here needs it)."""
        if self._run is None:
            raise TrainerError("the local grid belongs to no Flower run")
        return self._run

    def set_run(self, run: Run) -> None:
        """Keep `run` for :attr:`run`."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower's older way to make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All parties, 1..K and the evaluator."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to their lanes; returns their ids in order."""
        return [self._push(message, None) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each once."""
        with self._lock:
            done = [i for i in message_ids if (future := self._replies.get(i)) is not None and future.done()]
            return [self._replies.pop(i).result() for i in done]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send, and wait for replies until `timeout` seconds are over; who is late is left out and its answer dropped.

        A message whose turn has not come by then is never delivered.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ids = [self._push(message, timeout) for message in messages]
        with self._lock:
            waiting = {self._replies[i] for i in ids}
        replies: list[Message] = []
        while waiting:  # each is fetched when it is there: who asked may note when
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, waiting = wait(waiting, left, FIRST_COMPLETED)
            if not done:
                break
            try:
                replies += self.pull_messages(ids)
            except BaseException:  # no error of a courier's: the end of this process. What is under way ends first
                wait(waiting, left)
                raise
        with self._lock:
            for late in [self._replies.pop(i) for i in ids if i in self._replies]:
                late.cancel()
        return replies

    def close(self) -> None:
        """Let the lanes go; waits for no trainer."""
        for lane in self._lanes.values():
            lane.shutdown(wait=False, cancel_futures=True)

    def _push(self, message: Message, timeout: float | None) -> str:
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            raise TrainerError("a message for an unknown node", found=node, expected=sorted(self._contexts))
        ttl = message.metadata.ttl if timeout is None else min(message.metadata.ttl, timeout) + SLACK_S
        # Strategies use one RecordDict for all nodes: each site gets its own, as it would over a network.
        own = Message(copy.deepcopy(message.content), node, message.metadata.message_type, ttl=ttl,
                      group_id=message.metadata.group_id)  # fmt: skip
        number = str(next(self._numbers))
        _number(message, number)
        _number(own, number)
        lane = self._lanes[self._pool.trainer(self._pool.nodes[node]).index]
        with self._lock:
            self._replies[number] = lane.submit(self._deliver, own, time.monotonic())
        return number

    def _deliver(self, message: Message, pushed: float) -> Message:
        """Run the ClientApp on one message that waited since `pushed`; whatever goes wrong becomes an error reply."""
        context = self._contexts[message.metadata.dst_node_id]
        site = self._pool.nodes[context.node_id]
        started, down = time.monotonic(), size(message)
        self._tell("started", site, message, started, 0, down, False)
        try:
            self._pool.ensure(self._pool.trainer(site))
            reply = self._app(message, context)
        except MammoFedError as error:
            reply = Message(Error(NODE_UNAVAILABLE, str(error)), reply_to=message)
        except Exception as error:  # as Flower's own runtime does: a site's failure is the site's
            reply = Message(Error(APP_RAISED, f"the courier of {site} failed: {type(error).__name__}: {error}"),
                            reply_to=message)  # fmt: skip
        _number(reply, str(next(self._numbers)))
        if not reply.has_error() and (fields := reply.content.config_records.get(MESSAGE)) is not None:
            before = fields.get(WAITED)
            fields[WAITED] = started - pushed + (before if isinstance(before, float) else 0.0)
        self._tell("finished", site, message, started, size(reply), down, reply.has_error())
        return reply

    def _tell(
        self, kind: Literal["started", "finished"], site: str, message: Message, started: float, up: int, down: int,
        failed: bool,
    ) -> None:  # fmt: skip
        if self._observer is not None:
            meta = message.metadata
            self._observer(GridEvent(kind, site, meta.message_type, meta.group_id, time.monotonic() - started, up, down,
                                     failed))  # fmt: skip


def size(message: Message) -> int:
    """Bytes of a message's tensors and fields."""
    if message.has_error():
        return len((message.error.reason or "").encode())
    arrays = sum(record.count_bytes() for record in message.content.array_records.values())
    return arrays + sum(len(str(v).encode()) for c in message.content.config_records.values() for v in c.values())


def _identify() -> None:
    """PRIVATE to Flower: `Message()` takes run, node and task from this class, set in Flower's own processes only."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, 1


def _number(message: Message, number: str) -> None:
    """PRIVATE to Flower: a message gets its id from the grid, as in `flwr.superlink.grid.inmemory_grid`."""
    message.metadata.__dict__["_message_id"] = number
