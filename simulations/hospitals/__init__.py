"""How hospitals differ: who comes, what their detector does, what their records lack; called by simulations/launch."""

from simulations.hospitals.defaults import default_hospitals
from simulations.hospitals.shifts import shifted, synthetic_hospitals

__all__ = ["default_hospitals", "shifted", "synthetic_hospitals"]
