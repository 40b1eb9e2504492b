"""The engine `flower`: Flower's own simulation runtime, whose Ray actors run the trainer as a library."""

from simulations.engine.flower.run import run_on_ray
from simulations.engine.flower.settings import FlowerSettings

__all__ = ["FlowerSettings", "run_on_ray"]
