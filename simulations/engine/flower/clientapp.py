"""The ClientApp that runs inside Ray's actors, with the trainer as a library; Flower loads it by this module's name.

The driver process loads it too, and needs no torch: the trainer is imported when an actor gets its first message.
Flower numbers simulated nodes from 0 (`partition-id`): sites by name, then the evaluator.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from shared_model.errors import ConfigError
from simulations.engine.flower.place import run_directory

if TYPE_CHECKING:
    from simulations.engine.flower.actor import Actor

PARTITION = "partition-id"

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of local training."""
    return handle(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """One evaluation."""
    return handle(message, context)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Who is this site, and which studies has it approved?"""
    return handle(message, context)


def handle(message: Message, context: Context) -> Message:
    """Answer one message for the party that the node stands for.

    Raises:
        ConfigError: the node is none of a simulation; Flower makes an error reply of it.
    """
    number = context.node_config.get(PARTITION)
    if not isinstance(number, int):
        raise ConfigError("the node is none of Flower's simulation", found=sorted(context.node_config),
                          expected=PARTITION)  # fmt: skip
    return _actor(run_directory(context)).answer(message, number)


@functools.cache
def _actor(run_dir: Path) -> Actor:
    """What this process keeps warm between messages."""
    from simulations.engine.flower.actor import Actor

    return Actor(run_dir)
