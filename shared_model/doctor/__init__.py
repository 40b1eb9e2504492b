"""What `doctor` finds on a machine: checks in three colours with cause and cure; used by `client` and `server`."""

from shared_model.doctor.check import Check, Diagnosis, Level, examined

__all__ = ["Check", "Diagnosis", "Level", "examined"]
