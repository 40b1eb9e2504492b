"""What a study will take before it starts: `mammofed simulate plan`. Counts are exact, times are of this machine.

`sizes` counts women and films, `child` calibrates and sums epsilon (the one part that needs torch), `miniature` runs
the study's own recipe on a few women here and now, `reckon` makes the forecast of both, `show` prints it.
"""
