"""A study's curves for TensorBoard, in `monitor/tensorboard` of its run directory; needs the extra `tensorboard`.

    pip install 'mammofed[tensorboard]' && tensorboard --logdir RUN_DIR/monitor/tensorboard
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.monitor.writers.cursor import Cursor
from server.monitor.writers.points import points
from server.rounds.events import Event


class TensorBoard:
    """Appends scalars to an event file of this process; TensorBoard reads those of all processes as one curve."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._cursor_file = folder / "tensorboard", folder / "tensorboard.json"
        self._cursor = Cursor()
        self._file: Any = None
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._writers = importlib.import_module("tensorboard.summary.writer.event_file_writer")

    def begin(self) -> int:
        """Number of the last event that is in the files."""
        self._cursor = Cursor.read(self._cursor_file)
        return self._cursor.last

    def write(self, events: Sequence[tuple[int, Event]]) -> None:
        """Add the numbers of these events."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._writers.EventFileWriter(str(self._folder))
        for _, event in events:
            for point in points(event):
                value = self._summary.Summary.Value(tag=point.name, simple_value=point.value)
                self._file.add_event(self._event.Event(wall_time=point.time, step=point.step,
                                                       summary=self._summary.Summary(value=[value])))  # fmt: skip
        self._file.flush()
        self._cursor = Cursor(last=events[-1][0])
        self._cursor.write(self._cursor_file)

    def close(self) -> None:
        """End the file of this process."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
