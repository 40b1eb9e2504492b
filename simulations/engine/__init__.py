"""Engines that run a whole study on one machine; `local`: Flower's Grid in front of a pool of trainer processes."""

from simulations.engine.local import GridEvent, LocalGrid
from simulations.engine.pool import TrainerPool

__all__ = ["GridEvent", "LocalGrid", "TrainerPool"]
