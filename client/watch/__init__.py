"""A member's own monitor: the coordinator's watch stream, folded into what a terminal shows; `mammofed site watch`."""
