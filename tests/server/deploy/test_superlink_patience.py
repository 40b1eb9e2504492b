"""What is replaced in Flower's SuperLink, held against the pinned version."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.deploy import superlink
from server.deploy.superlink import BUSY_MS, patient


def test_only_the_wait_for_the_database_is_longer() -> None:
    from flwr.supercore import constant

    before, after = dict(constant.SQLITE_PRAGMAS), dict(patient(constant.SQLITE_PRAGMAS))
    assert before["busy_timeout"] == "5000", "Flower has another value now: is ours still needed?"
    assert after == before | {"busy_timeout": BUSY_MS}


def test_a_connection_of_superlinks_state_waits_that_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore import sql_mixin
    from flwr.superlink import cli
    from sqlalchemy import text

    class State(sql_mixin.SqlMixin):
        """A database with nothing in it."""

    waits = []

    def run() -> int:
        state = State(str(tmp_path / "state.db"))
        state.initialize()
        with state.session() as session:
            waits.append(session.execute(text("PRAGMA busy_timeout")).scalar())
        return 3

    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", vars(sql_mixin)["SQLITE_PRAGMAS"])  # put back afterwards
    monkeypatch.setattr(cli, "flower_superlink", run)
    with pytest.raises(SystemExit) as end:
        superlink.main()
    assert end.value.code == 3 and waits == [int(BUSY_MS)]
