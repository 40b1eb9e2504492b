"""Hands a released model to other software: ONNX with a parity check on real cases; for `mammofed export`."""
