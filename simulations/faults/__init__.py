"""Faults on purpose: every party killed at every state, full disks, damaged files, lying sites, bad networks.

Each case runs a small study with real processes and sockets, disturbs it at an exact place, goes on, and compares the
end state with that of an undisturbed study: the model's bytes, who took part, and what the ledgers say.
"""
