"""The history's tables, and how an older file becomes one of today's."""

from __future__ import annotations

import sqlite3
import zlib
from typing import Final

from monitor.errors import MonitorError

__all__ = ["VERSION", "NewerFile", "drop_index", "migrate", "old_indexes", "read_dictionary"]

# What most records have in common, for zlib: the keys in their order, and common values. A file
# keeps the dictionary that it was begun with.
_DICTIONARY: Final = (
    b'"comm":"/usr/bin/curl","wget","python3","node","exe":"/usr/sbin/","unit":"ssh.service"'
    b'"session-1.scope","user@1000.service","system.slice""ECONNREFUSED","errno":"ETIMEDOUT"'
    b'"timeout","result":"refused"10.0.0.192.168.172.17.0.fd00::127.0.0.1"state":"failed"'
    b'{"v":1,"id":"","start":"2026-01-01T00:00:00.000000Z","state":"closed","role":"client",'
    b'"pid":,"tid":,"comm":"","exe":"/usr/bin/","uid":1000,"unit":null,"container":null,'
    b'"netns":4026531840,"host":".example.com","host_source":"lookup","laddr":"10.","lport":,'
    b'"raddr":"","rport":443,"family":"ipv4","transport":"tcp","peer":"","dns":["],"dns_us":,'
    b'"dns_disp":1,"dns_source":"getaddrinfo","dns_age_us":,"dns_match":"thread","sockconn_us":,'
    b'"attempts":[{"raddr":"","rport":443,"us":,"offset_us":0,"result":"ok","errno":null}],'
    b'"tls_us":,"tls":{"source":"openssl","version":"TLSv1.3","cipher":"TLS_AES_256_GCM_SHA384",'
    b'"sni":"","alpn":["h2","http/1.1"],"alpn_chosen":false,"resumed":false,"result":"ok",'
    b'"alert":null},"txn_resp_us":,"greeting_us":null,"turns":{"count":1,"sum_us":,"max_us":},'
    b'"prot_specific":{"protocol":"http","resp":200,"method":"GET","version":"1.1"},'
    b'"tcp":{"rtt_us":,"rttvar_us":,"retransmits":0,"bytes_sent":,"bytes_received":},'
    b'"duration_us":,"error":null,"lost_before":false}\n'
)

_V1: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE record (
    seq INTEGER PRIMARY KEY,
    ended_us INTEGER NOT NULL,
    id TEXT,
    pid INTEGER,
    uid INTEGER,
    comm TEXT,
    unit TEXT,
    container TEXT,
    host TEXT,
    failed INTEGER NOT NULL,
    slowest_us INTEGER NOT NULL
);
CREATE TABLE body (seq INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE INDEX record_ended ON record (ended_us);
CREATE INDEX record_id ON record (id);
CREATE INDEX record_pid ON record (pid);
CREATE INDEX record_uid ON record (uid);
CREATE INDEX record_comm ON record (comm);
CREATE INDEX record_unit ON record (unit) WHERE unit IS NOT NULL;
CREATE INDEX record_container ON record (container) WHERE container IS NOT NULL;
CREATE INDEX record_host ON record (host) WHERE host IS NOT NULL;
CREATE INDEX record_failed ON record (seq) WHERE failed;
CREATE INDEX record_slowest ON record (slowest_us);
"""

# Blocks instead of an index for each filter (monitor/history/blocks.py). Of a large file they are
# made later, one by one, and then the indexes go.
_V2: Final = """
CREATE TABLE block (
    number INTEGER PRIMARY KEY,
    records INTEGER NOT NULL,
    oldest_us INTEGER NOT NULL,
    newest_us INTEGER NOT NULL,
    slowest_us INTEGER NOT NULL
);
CREATE TABLE slowest (block INTEGER PRIMARY KEY, us BLOB NOT NULL);
CREATE TABLE posting (
    block INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    value NOT NULL,
    places BLOB NOT NULL,
    PRIMARY KEY (block, kind, value)
) WITHOUT ROWID;
"""
_OLD_INDEXES: Final = (
    "record_ended", "record_pid", "record_uid", "record_comm", "record_unit", "record_container",
    "record_host", "record_failed", "record_slowest",
)  # fmt: skip

# Of records that were there before it is null: their bodies have it.
_V3: Final = """
ALTER TABLE record ADD COLUMN exe TEXT;
"""

# One script for each version; a file of version N has been through the first N.
MIGRATIONS: Final = (_V1, _V2, _V3)
VERSION: Final = len(MIGRATIONS)


class NewerFile(MonitorError):
    """Written by a later conmond."""


def migrate(database: sqlite3.Connection) -> None:
    """Bring a database, new or old, to today's schema.

    Raises:
        NewerFile: it has a later one.
        sqlite3.Error: it cannot be read or written.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise NewerFile(f"it has schema {version}, and this conmond knows {VERSION}")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        database.executescript(f"BEGIN;{script}PRAGMA user_version={number};COMMIT;")
    if database.execute("SELECT 1 FROM record LIMIT 1").fetchone() is None:
        for name in old_indexes(database):
            drop_index(database, name)
    database.execute(
        "INSERT OR IGNORE INTO meta VALUES ('dictionary', ?)", (zlib.compress(_DICTIONARY),)
    )
    database.commit()


def old_indexes(database: sqlite3.Connection) -> list[str]:
    """Return the names of version 1's indexes that are still there."""
    names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    return [name for name in _OLD_INDEXES if name in names]


def drop_index(database: sqlite3.Connection, name: str) -> None:
    """Drop one of them. Of a million records that takes a tenth of a second and more."""
    database.execute(f"DROP INDEX {name}")
    database.commit()


def read_dictionary(database: sqlite3.Connection) -> bytes:
    """Return the dictionary that this file's bodies are compressed with.

    Raises:
        sqlite3.DatabaseError: it is damaged.
    """
    (data,) = database.execute("SELECT value FROM meta WHERE name = 'dictionary'").fetchone()
    try:
        return zlib.decompress(data)
    except (zlib.error, TypeError) as exc:
        raise sqlite3.DatabaseError("its dictionary is malformed") from exc
