"""What the sources that ask an archive over the network have in common: to collect from it, and only to look."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from client.ingest.sources.associations import VERIFICATION
from client.ingest.sources.collected import Collected, Progress
from client.ingest.sources.gather import Archive, gather
from client.ingest.sources.intake import Deidentifies, Intake
from client.ingest.sources.lookup import Lookup
from client.ingest.sources.quiet import quiet_network
from client.ingest.sources.received import Received
from client.ingest.sources.retry import Backoff
from client.ingest.sources.settings import Patience


class Opened(Archive, Lookup, Protocol):
    """An archive that can be collected from, and asked."""


class ArchiveSource(Patience):
    """Base of the entries of a site's films that name an archive."""

    @abstractmethod
    def _open(self, intake: Intake | None, max_bytes: int) -> AbstractContextManager[Opened]:
        """Reach the archive. intake: takes what is delivered, films of at most `max_bytes`; None: it is only asked."""

    def collect(
        self,
        store: Received,
        deidentify: Deidentifies,
        progress: Progress | None = None,
        *,
        backoff: Backoff | None = None,
    ) -> Collected:
        """Bring the films that are missing in `store`; see :func:`client.ingest.sources.gather.gather`.

        Raises:
            SourceError: the archive cannot be reached or refuses. StorageError: the disk. ConfigError: settings.
        """
        store.bind(deidentify.uid(VERIFICATION))
        intake = Intake(store, deidentify)
        with quiet_network(), self._open(intake, store.max_bytes) as archive:
            return gather(
                archive, store, intake, deidentify, quiet_seconds=self.quiet_seconds,
                backoff=backoff or Backoff(self.retries), progress=progress,
            )  # fmt: skip

    @contextmanager
    def look(self) -> Iterator[Lookup]:
        """Ask the archive without having anything delivered; see :mod:`client.ingest.sources.lookup`.

        Raises:
            SourceError, ConfigError: as :meth:`collect`.
        """
        with quiet_network(), self._open(None, 0) as archive:
            yield archive
