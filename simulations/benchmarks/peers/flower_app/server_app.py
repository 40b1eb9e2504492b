"""The stock server of Flower's Message API: FedAvg over all sites, without evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from simulations.benchmarks.peers import work

app = ServerApp()


class CountedFedAvg(FedAvg):
    """FedAvg that marks how many sites' replies each round had."""

    def __init__(self, sites: int, out: Path) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
        self._out = out

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Count, then as FedAvg does."""
        answers = list(replies)
        work.mark(self._out, "aggregated", server_round, replies=sum(reply.has_content() for reply in answers))
        return super().aggregate_train(server_round, answers)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds, from the weights that our study began with."""
    run_dir, out = (Path(str(context.run_config[name])) for name in ("run-dir", "out"))
    study = work.study(run_dir)
    CountedFedAvg(len(study.sites), out).start(
        grid=grid, initial_arrays=ArrayRecord(dict(study.initial)), num_rounds=study.protocol.rounds
    )
