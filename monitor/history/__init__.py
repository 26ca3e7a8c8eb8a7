"""Every record on disk for a while: SQLite, written off the event path (docs/design/051)."""

from monitor.history.query import HistoryPage, HistoryQuery
from monitor.history.store import History, HistoryStatus

__all__ = ["History", "HistoryPage", "HistoryQuery", "HistoryStatus"]
