"""Numbers in words, as all of MammoFed says them; the functions live in `shared_model.figures`."""

from shared_model.figures import BLOCKS, bytes_in_words, seconds_in_words, sparkline

__all__ = ["BLOCKS", "bytes_in_words", "seconds_in_words", "sparkline"]
