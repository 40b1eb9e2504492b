"""A watch that does the same step again and again, in a thread of its own that nobody waits for: keeper and feeds."""

from __future__ import annotations

import logging
from abc import abstractmethod
from types import TracebackType

from shared_model.errors import MammoFedError
from shared_model.repeating import Repeating

log = logging.getLogger("mammofed.monitor")


class Stepping(Repeating):
    """A context manager: steps while the block runs, once more at its end, then :meth:`done`.

    A step that fails is said once, and again when it fails otherwise; the next one's turn comes all the same, because
    the watch must outlive what it watches.

    Args:
        name: of the thread, and in the log. step_s: seconds between steps. end_s: that the block's end waits at most.
    """

    def __init__(self, name: str, *, step_s: float, end_s: float) -> None:
        super().__init__(name, every_s=step_s, end_s=end_s)
        self._name, self._fault = name, ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._thread.is_alive():
            log.warning("%s: slow; what is not done yet is done when this is started again", self._name)

    @abstractmethod
    def step(self, *, last: bool = False) -> None:
        """Do it once. last: nobody does it again."""

    def done(self) -> None:
        """Let go of what is held, by those that hold anything; called in the thread, after the last step."""

    def _run(self) -> None:
        super()._run()
        self._try(last=True)  # how it ended counts, too
        self.done()

    def _turn(self) -> None:
        self._try()

    def _try(self, *, last: bool = False) -> None:
        try:
            self.step(last=last)
            self._fault = ""
        except Exception as error:  # a damaged journal, a folder that is gone, another tool's code: anything may come
            words = str(error) if isinstance(error, MammoFedError) else repr(error)
            if words != self._fault:
                log.error("%s: %s", self._name, words, exc_info=not isinstance(error, MammoFedError))
            self._fault = words
