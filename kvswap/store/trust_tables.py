"""The tables of `trust.sqlite3`, as migrations."""

# Append only, as those of the index.  The first is what was there before there were migrations.
MIGRATIONS = (
    """
    CREATE TABLE IF NOT EXISTS checks (
        artifact TEXT NOT NULL, level INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (artifact, level)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS audits (
        id TEXT PRIMARY KEY, artifact TEXT NOT NULL, document TEXT, publisher TEXT NOT NULL, auditor TEXT NOT NULL,
        failed INTEGER NOT NULL, at REAL NOT NULL, envelope BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS audits_artifact ON audits (artifact);
    CREATE INDEX IF NOT EXISTS audits_document ON audits (document);
    CREATE TABLE IF NOT EXISTS heads (
        publisher TEXT PRIMARY KEY, sequence INTEGER NOT NULL, at REAL NOT NULL, kept INTEGER NOT NULL,
        envelope BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS withdrawn (
        artifact TEXT NOT NULL, publisher TEXT NOT NULL, why TEXT NOT NULL, PRIMARY KEY (artifact, publisher)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE outcomes (
        artifact TEXT PRIMARY KEY, publisher TEXT NOT NULL, verdict TEXT NOT NULL, rules INTEGER NOT NULL,
        levels TEXT NOT NULL, others TEXT NOT NULL, why TEXT NOT NULL, at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE asked (artifact TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
    ALTER TABLE heads ADD COLUMN teller TEXT NOT NULL DEFAULT '';
    ALTER TABLE withdrawn ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE withdrawn ADD COLUMN at REAL NOT NULL DEFAULT 0;
    UPDATE withdrawn SET kept = 1;
    CREATE INDEX withdrawn_publisher ON withdrawn (publisher);
    """,
)
