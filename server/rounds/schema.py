"""The tables of journal.sqlite, part of the run directory's contract: made by the journal, read by report and monitors.

Readers open the file read-only (`mode=ro`); it is in WAL mode, so they never block the study.
"""

from __future__ import annotations

JOURNAL_VERSION = 1

# Later than the other tables: a journal of an earlier release gets it when it is gone on with, and a reader finds none.
PHASES = """
-- seconds of a site in one attempt by phase (server/rounds/phases.py): round_trip from request to reply, and what it is
-- made of; a part that is not known is NULL, and so are all where nothing came
CREATE TABLE IF NOT EXISTS phases (round INTEGER NOT NULL, attempt INTEGER NOT NULL, site TEXT NOT NULL,
    round_trip REAL, wait REAL, load REAL, train REAL, mask REAL, send REAL, PRIMARY KEY (round, attempt, site)) STRICT;
"""

TABLES = """
-- key/value, values as JSON: journal_version, study, protocol_sha256, release, state, chosen, test_opened
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
-- one row a process that worked on the study; seconds: wall clock, kept up to date at every step
CREATE TABLE sessions (id INTEGER PRIMARY KEY, started REAL NOT NULL, seconds REAL NOT NULL,
    versions TEXT NOT NULL) STRICT;
-- one row a step, append-only: what happened and which state it led to (server/rounds/states.py); round 0 is the study
CREATE TABLE steps (id INTEGER PRIMARY KEY, time REAL NOT NULL, session INTEGER NOT NULL, round INTEGER NOT NULL,
    attempt INTEGER NOT NULL, step TEXT NOT NULL, state TEXT NOT NULL) STRICT;
-- where each attempt of each round is; seconds: from opening to its last step
CREATE TABLE rounds (round INTEGER NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL, opened REAL NOT NULL,
    seconds REAL NOT NULL, weights_before TEXT NOT NULL, weights_after TEXT, PRIMARY KEY (round, attempt)) STRICT;
-- outcome: contributed | abstained | refused (by the sanity gate or for a wrong identity) | late | failed | not_sampled
-- asked: attempt number in the request to this site; it rises only when the site is asked to train anew (0: not asked)
CREATE TABLE participation (round INTEGER NOT NULL, attempt INTEGER NOT NULL, site TEXT NOT NULL, outcome TEXT NOT NULL,
    reason TEXT NOT NULL, asked INTEGER NOT NULL, seconds REAL, bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL,
    PRIMARY KEY (round, attempt, site)) STRICT;
CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, severity TEXT NOT NULL,
    code TEXT NOT NULL, site TEXT, round INTEGER, attempt INTEGER, text TEXT NOT NULL, data TEXT NOT NULL) STRICT;
-- scope: initial (round 0, on `selection`) | selection | test | test_initial | site | training (loss) | influence
-- (norm, cosine, shift: server/rounds/influence.py; site: whose update) | joint (all sites' women together)
-- site: who measured; under privacy there is no loss: it is not noised, so it stays at the site
CREATE TABLE metrics (round INTEGER NOT NULL, scope TEXT NOT NULL, site TEXT NOT NULL, name TEXT NOT NULL,
    value REAL NOT NULL, PRIMARY KEY (round, scope, site, name)) STRICT;
-- documents of shared_model.evaluation, as JSON, same scopes, without small counts (server/rounds/withheld.py)
CREATE TABLE reports (round INTEGER NOT NULL, scope TEXT NOT NULL, site TEXT NOT NULL, weights_sha256 TEXT NOT NULL,
    document TEXT NOT NULL, seconds REAL NOT NULL, bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL,
    PRIMARY KEY (round, scope, site)) STRICT;
-- state of a site's accountant after it answered; release: training | metrics (disjoint patients)
CREATE TABLE privacy (round INTEGER NOT NULL, site TEXT NOT NULL, release TEXT NOT NULL, unit TEXT NOT NULL,
    adjacency TEXT NOT NULL, accountant TEXT NOT NULL, epsilon REAL NOT NULL, budget REAL NOT NULL, delta REAL NOT NULL,
    noise_multiplier REAL NOT NULL, sample_rate REAL NOT NULL, steps INTEGER NOT NULL,
    PRIMARY KEY (round, site, release)) STRICT;
"""
