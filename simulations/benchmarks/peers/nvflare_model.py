"""The model that FLARE's server begins with, named in its job by class and arguments, as its recipes want it."""

from __future__ import annotations

from pathlib import Path

from shared_model.fusion import FusionModel
from simulations.benchmarks.peers import work


class InitialModel(FusionModel):
    """The study's model with its initial weights."""

    def __init__(self, run_dir: str) -> None:
        study = work.study(Path(run_dir))
        model = study.model(study.initial)
        super().__init__(model.config, prior_logit=model.prior_logit)
        self.load_state_dict(model.state_dict())
