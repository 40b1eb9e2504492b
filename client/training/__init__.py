"""Local training at one site: patient-level DP-SGD and the ordinary path beside it; needs torch, runs in the trainer."""
