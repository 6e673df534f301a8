"""The tables of the store's index, and how many rows one statement names."""

ROWS_AT_ONCE = 500
"""Rows that one statement names or returns, and that are made into JSON at once: SQLite takes 999 parameters in its
oldest form, and so many take a millisecond or two."""
# Append only: a migration that was ever released is never edited.
MIGRATIONS = (
    """
    CREATE TABLE chunks (
        cid BLOB PRIMARY KEY, length INTEGER NOT NULL, added REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE artifacts (
        id TEXT PRIMARY KEY, envelope BLOB NOT NULL, document TEXT, model BLOB NOT NULL,
        label TEXT NOT NULL, dtype TEXT NOT NULL, tokens INTEGER NOT NULL, raw_bytes INTEGER NOT NULL,
        wire_bytes INTEGER NOT NULL, publisher TEXT NOT NULL, expires INTEGER NOT NULL,
        added REAL NOT NULL, used REAL NOT NULL, pinned INTEGER NOT NULL DEFAULT 0,
        complete INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE INDEX artifacts_document ON artifacts (document);
    CREATE TABLE artifact_chunks (
        artifact TEXT NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE, cid BLOB NOT NULL,
        needed INTEGER NOT NULL, PRIMARY KEY (artifact, cid)
    ) WITHOUT ROWID;
    CREATE INDEX artifact_chunks_cid ON artifact_chunks (cid);
    CREATE TABLE prefixes (
        chain BLOB NOT NULL, artifact TEXT NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
        block INTEGER NOT NULL, PRIMARY KEY (chain, artifact)
    ) WITHOUT ROWID;
    """,
    """
    CREATE INDEX prefixes_artifact ON prefixes (artifact);
    """,
    """
    CREATE INDEX artifacts_publisher ON artifacts (publisher);
    """,
    """
    ALTER TABLE chunks ADD COLUMN synced INTEGER NOT NULL DEFAULT 1;
    CREATE INDEX chunks_unsynced ON chunks (cid) WHERE NOT synced;
    """,
    # Whose a chunk is, counted where that changes: looking through all to find nobody's took a second with 600,000.
    """
    ALTER TABLE chunks ADD COLUMN owners INTEGER NOT NULL DEFAULT 0;
    UPDATE chunks SET owners = (SELECT COUNT(*) FROM artifact_chunks a WHERE a.cid = chunks.cid);
    CREATE INDEX chunks_orphans ON chunks (cid) WHERE owners = 0;
    CREATE TRIGGER chunk_came AFTER INSERT ON chunks BEGIN
        UPDATE chunks SET owners = (SELECT COUNT(*) FROM artifact_chunks a WHERE a.cid = NEW.cid) WHERE cid = NEW.cid;
    END;
    CREATE TRIGGER owner_came AFTER INSERT ON artifact_chunks BEGIN
        UPDATE chunks SET owners = owners + 1 WHERE cid = NEW.cid;
    END;
    CREATE TRIGGER owner_went AFTER DELETE ON artifact_chunks BEGIN
        UPDATE chunks SET owners = owners - 1 WHERE cid = OLD.cid;
    END;
    CREATE INDEX artifacts_added ON artifacts (added);
    """,
    # What is listed apart from the signed manifests: rows of 300 bytes are read a page of many at a time, beside
    # manifests of 5 KB and more each was a page of its own.
    """
    CREATE TABLE envelopes (
        artifact TEXT PRIMARY KEY REFERENCES artifacts (id) ON DELETE CASCADE, envelope BLOB NOT NULL
    );
    INSERT INTO envelopes SELECT id, envelope FROM artifacts;
    UPDATE artifacts SET envelope = x'';
    DROP INDEX artifacts_publisher;
    CREATE INDEX artifacts_publisher ON artifacts (publisher, expires, added);
    CREATE INDEX artifacts_used ON artifacts (pinned, used);
    """,
)
