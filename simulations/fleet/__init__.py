"""`mammofed simulate fleet`: many sites in a real deployment on this machine, and whether the coordinator grows."""
