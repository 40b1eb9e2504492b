"""`mammofed privacy plan`: before a budget is wasted, what noise a study needs, and what that costs in AUC.

`noise` reckons (exactly, by the sites' own accountant); `measured` reads the table of losses that `measure` made with
the simulator and says what it foretells; `command` puts both into words.
"""
