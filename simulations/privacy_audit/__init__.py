"""`mammofed privacy audit`: tries to break the privacy promise of a study's own configuration, on this machine.

Every check runs :func:`client.training.local.train_round`, which hospitals run, and looks at what leaves it.
`subject` is what is audited, `instruments` what it is measured with; each other module is one attack or one measurement
and gives findings. What a check cannot see stands in its words.
"""
