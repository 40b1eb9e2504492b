"""What the same study costs in other frameworks: stock Flower on Ray, NVIDIA FLARE's simulator, and ours.

`compare` is the bench's section; README.md holds its table and what it does not show. `probe` measures a command's
process tree, `environment` installs what only this comparison needs, `ours`, `flower` and `nvflare` start the
contestants, and `work` is what a site does in the two that are not ours.
"""
