"""Monitors federated rounds: reads run directories, shows them on a page and a terminal, tells other tools."""
