"""The round loop: state tables, journal, checkpoints, quorum, resume, model selection, summary."""
