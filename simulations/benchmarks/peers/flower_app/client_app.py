"""The stock client of Flower's Message API: weights in, one round of `work`, weights out."""

from __future__ import annotations

from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from simulations.benchmarks.peers import work

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train at the site that Flower's simulation gives as `partition-id`."""
    run_dir, out = (Path(str(context.run_config[name])) for name in ("run-dir", "out"))
    weights, loss, patients = work.train(
        run_dir, site=int(context.node_config["partition-id"]),
        round_number=int(str(message.content["config"]["server-round"])),
        weights=message.content["arrays"].to_torch_state_dict(), out=out,  # type: ignore[union-attr]
    )  # fmt: skip
    metrics = MetricRecord({"loss": loss, "num-examples": patients})
    return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)
