"""Hand what a study's journal says to other tools: JSON lines always, MLflow and TensorBoard as extras."""

from server.monitor.writers.feed import KINDS, Feed, Feeds, check_writers

__all__ = ["KINDS", "Feed", "Feeds", "check_writers"]
