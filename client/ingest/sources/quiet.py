"""Keeps pydicom and pynetdicom silent while they handle identities; entered once around a whole collection.

Their messages repeat header values: names in pydicom's warnings, identifiers of queries in pynetdicom's log, and the
tracebacks of handlers in its error log. Entered once and not in each thread, because filters of warnings are global.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_SILENCED = ("pydicom", "pynetdicom", "urllib3")
_ABOVE_ALL = logging.CRITICAL + 10


@contextmanager
def quiet_network() -> Iterator[None]:
    """No record of these packages reaches a handler, and no warning is shown; what was set before comes back."""
    loggers = _loggers()
    before = [(logger, logger.level, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.setLevel(_ABOVE_ALL)
        logger.disabled = True  # a level set later by debug_logger() does not undo this
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level, disabled in before:
            logger.setLevel(level)
            logger.disabled = disabled


def _loggers() -> list[logging.Logger]:
    """The packages' loggers and all that exist below them: a child does not look at whether its parent is disabled."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _SILENCED]
    return [logging.getLogger(name) for name in dict.fromkeys([*_SILENCED, *names])]
