"""Section `deployment` of the bench: what a round costs with real processes, TLS and node authentication."""
