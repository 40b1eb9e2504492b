"""Designs: how a model is judged besides one held-out split, as real runs. For the launcher; needs no torch.

`plans` says who trains and who is tested, `price` what that costs a woman, `worker` runs one training, `results` says
what came of all, and `study` puts them together. Pages and words are in `server/reporting/design_*`.
"""
