"""Measurements of speed, memory and bytes as ratios within one run; `bench` puts them together for the command line."""
