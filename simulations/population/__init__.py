"""Synthetic women: anatomy, lesions, detector, clinical variables, as DICOM files and tables like a real site's."""

from simulations.population.generate import generate
from simulations.population.specs import HospitalSpec, Population, Vendor

__all__ = ["HospitalSpec", "Population", "Vendor", "generate"]
