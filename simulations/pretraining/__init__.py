"""Pre-training of the image branch on public procedural films."""
