"""A grid in which only the sampled sites exist, so that Flower's strategies cannot sample or wait; for `strategies`."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class SampledView(Grid):
    """A read-only Grid in which exactly the sampled sites exist, so that a strategy cannot sample or wait by itself."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self._nodes = tuple(nodes)

    def get_node_ids(self) -> tuple[int, ...]:
        """The sampled nodes."""
        return self._nodes

    def set_run(self, run: Run) -> None:
        """Refused: the view is read-only."""
        raise RuntimeError("the view of sampled sites is read-only")

    @property
    def run(self) -> Run:
        """Refused: a strategy needs no run."""
        raise RuntimeError("the view of sampled sites is read-only")

    def create_message(self, *_: object, **__: object) -> Message:
        """Refused: messages are made with the Message constructor."""
        raise RuntimeError("the view of sampled sites is read-only")

    def push_messages(self, messages: object) -> list[str]:
        """Refused: only the round loop sends."""
        raise RuntimeError("the view of sampled sites is read-only")

    def pull_messages(self, message_ids: object) -> list[Message]:
        """Refused: only the round loop receives."""
        raise RuntimeError("the view of sampled sites is read-only")

    def send_and_receive(self, messages: object, *, timeout: float | None = None) -> list[Message]:
        """Refused: only the round loop sends."""
        raise RuntimeError("the view of sampled sites is read-only")
