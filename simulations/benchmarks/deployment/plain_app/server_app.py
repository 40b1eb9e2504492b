"""The stock server: FedAvg over all sites, evaluated by all of them after each round, as Flower's templates do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from simulations.benchmarks.peers import work

app = ServerApp()


class MarkedFedAvg(FedAvg):
    """FedAvg that marks when each half of a round has ended, and with how many replies."""

    def __init__(self, sites: int, out: Path) -> None:
        super().__init__(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites)
        self._out = out

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Mark, then as FedAvg does."""
        answers = list(replies)
        work.mark(self._out, "trained", server_round, replies=sum(reply.has_content() for reply in answers))
        return super().aggregate_train(server_round, answers)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Mark, then as FedAvg does."""
        answers = list(replies)
        work.mark(self._out, "evaluated", server_round, replies=sum(reply.has_content() for reply in answers))
        return super().aggregate_evaluate(server_round, answers)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds, from the weights that our study begins with."""
    run_dir, out = (Path(str(context.run_config[name])) for name in ("run-dir", "out"))
    study = work.study(run_dir)
    MarkedFedAvg(len(study.sites), out).start(
        grid=grid, initial_arrays=ArrayRecord(dict(study.initial)), num_rounds=study.protocol.rounds
    )
