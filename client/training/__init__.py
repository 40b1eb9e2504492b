"""Local training at one site: patient-level DP-SGD and the ordinary path; needs torch, runs in the trainer."""
