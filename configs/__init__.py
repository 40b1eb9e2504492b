"""Hydra configuration groups: every default value lives here, beside the reason for it, and nowhere else."""
