"""What every party of a study must hold identically: contract, imaging, cohort, model, evaluation, protocol, messages."""
