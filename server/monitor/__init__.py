"""Monitors of federated rounds: one typed snapshot of a run directory (`view`) for a page, a terminal and metrics."""
