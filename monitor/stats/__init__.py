"""Per-process statistics of connections: counts, failures and latency quantiles. Pure."""

from monitor.stats.query import OpenConns, StatsAnswer, StatsQuery
from monitor.stats.stats import Stats
from monitor.stats.values import RELATIVE_ERROR

__all__ = ["RELATIVE_ERROR", "OpenConns", "Stats", "StatsAnswer", "StatsQuery"]
