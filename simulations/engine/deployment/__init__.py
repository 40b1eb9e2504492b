"""The engine `deployment`: a rehearsal on one machine with real processes, certificates, SuperLink and SuperNodes."""

from simulations.engine.deployment.rehearsal import Party, Rehearsal
from simulations.engine.deployment.run import run_deployment

__all__ = ["Party", "Rehearsal", "run_deployment"]
