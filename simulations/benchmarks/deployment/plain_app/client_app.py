"""The stock client: one message trains, another one evaluates; each is served by a fresh process."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from shared_model.cohort.batch import PatientBatch
from shared_model.fusion import patient_loss_B
from simulations.benchmarks.peers import work

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train at the site that the node configuration gives as `partition-id`."""
    run_dir, out = (Path(str(context.run_config[name])) for name in ("run-dir", "out"))
    weights, loss, patients = work.train(
        run_dir, site=int(context.node_config["partition-id"]),
        round_number=int(str(message.content["config"]["server-round"])),
        weights=message.content["arrays"].to_torch_state_dict(), out=out,  # type: ignore[union-attr]
    )  # fmt: skip
    metrics = MetricRecord({"loss": loss, "num-examples": patients})
    return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Mean loss on the site's women."""
    here = work.study(Path(str(context.run_config["run-dir"])))
    women = here.sites[int(context.node_config["partition-id"])]
    model = here.model(message.content["arrays"].to_torch_state_dict()).eval()  # type: ignore[union-attr]
    tensors = [torch.stack(parts) for parts in zip(*(women[i] for i in range(len(women))), strict=True)]
    batch = PatientBatch(*tensors)  # type: ignore[arg-type]  # five tensors
    with torch.no_grad():
        loss = float(patient_loss_B(model(batch), batch, terms=here.protocol.loss, objective="fusion").mean())
    metrics = MetricRecord({"loss": loss, "num-examples": len(women)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
