"""Latencies of one phase, few or many, in little memory.

Up to ``EXACT`` values are kept as they are. Beyond, they are counted in the bins of a DDSketch,
whose mapping and quantiles the library computes; only the bins are stored here, as two arrays,
since a sketch object takes some kilobytes and there are thousands.

A quantile is the value at rank ``floor(q * (count - 1))``, from 0, of the values in order: exact up
to ``EXACT`` values, then within ``RELATIVE_ERROR`` of it, and rounded to a microsecond.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, Final

from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import DenseStore

__all__ = ["EXACT", "QUANTILES", "RELATIVE_ERROR", "Values"]

EXACT: Final = 64
RELATIVE_ERROR: Final = 0.01
QUANTILES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
_MAPPING: Final = LogarithmicMapping(RELATIVE_ERROR)
_ZERO: Final = -1  # the bin of 0 us; a microsecond is in bin 0, later ones above
_MOST: Final = 0xFFFF_FFFF  # 71 minutes


class Values:
    """A bag of durations in microseconds.

    ``raw`` holds them, or, where it is None, ``keys`` and ``counts`` the bins; while values come
    in one by one, ``bins`` does, until :meth:`compact`.
    """

    __slots__ = ("bins", "count", "counts", "keys", "max", "raw")

    def __init__(self) -> None:
        self.count = 0
        self.max = 0
        self.raw: array[int] | None = array("I")
        self.bins: dict[int, int] | None = None
        self.keys: array[int] | None = None
        self.counts: array[int] | None = None

    def add(self, us: int) -> None:
        """Take in one duration; what is none, a negative one, is not counted."""
        if us < 0:
            return
        if us > _MOST:
            us = _MOST
        self.count += 1
        if us > self.max:
            self.max = us
        if self.raw is not None:
            self.raw.append(us)
            if len(self.raw) > EXACT:
                self._to_bins()
            return
        if self.bins is None:
            self._expand()
        bins = self.bins
        assert bins is not None
        key = _key(us)
        bins[key] = bins.get(key, 0) + 1

    def merge(self, other: Values) -> None:
        """Take in all of another bag, which stays as it is."""
        self.count += other.count
        if other.max > self.max:
            self.max = other.max
        if other.raw is not None and self.raw is not None:
            self.raw.extend(other.raw)
            if len(self.raw) > EXACT:
                self._to_bins()
            return
        if self.raw is not None:
            self._to_bins()
        elif self.bins is None:
            self._expand()
        bins = self.bins
        assert bins is not None
        for key, count in other._binned():
            bins[key] = bins.get(key, 0) + count

    def compact(self) -> None:
        """Store the bins in little memory, as nothing is likely to come in for a while."""
        if self.bins is not None:
            items = sorted(self.bins.items())
            self.keys = array("h", [key for key, _ in items])
            self.counts = array("Q", [count for _, count in items])
            self.bins = None

    def quantiles(self) -> dict[str, int | None]:
        """Return count, p50, p95, p99 and max; None where there is no value."""
        found: dict[str, int | None] = {"count": self.count}
        if not self.count:
            return found | dict.fromkeys((*QUANTILES, "max"))
        if self.raw is not None:
            ordered = sorted(self.raw)
            last = len(ordered) - 1
            for name, quantile in QUANTILES.items():
                found[name] = ordered[int(quantile * last)]
        else:
            sketch = self._sketch()
            for name, quantile in QUANTILES.items():
                found[name] = min(self.max, round(sketch.get_quantile_value(quantile)))
        found["max"] = self.max
        return found

    def p95(self) -> int:
        """Return the 95th percentile; -1 where there is no value."""
        if not self.count:
            return -1
        if self.raw is not None:
            ordered = sorted(self.raw)
            return ordered[int(QUANTILES["p95"] * (len(ordered) - 1))]
        near: float = self._sketch().get_quantile_value(QUANTILES["p95"])
        return min(self.max, round(near))

    def _to_bins(self) -> None:
        raw, self.raw = self.raw, None
        self.bins = {}
        for us in raw or ():
            key = _key(us)
            self.bins[key] = self.bins.get(key, 0) + 1

    def _expand(self) -> None:
        self.bins = dict(zip(self.keys or (), self.counts or (), strict=True))
        self.keys = self.counts = None

    def _binned(self) -> Iterable[tuple[int, int]]:
        if self.raw is not None:
            return [(_key(us), 1) for us in self.raw]
        if self.bins is not None:
            return self.bins.items()
        return zip(self.keys or (), self.counts or (), strict=True)

    def _sketch(self) -> Any:
        store = DenseStore()
        zeros = 0
        for key, count in sorted(self._binned()):
            if key == _ZERO:
                zeros = count
            else:
                store.add(key, count)
        return BaseDDSketch(_MAPPING, store, DenseStore(), zeros)


def _key(us: int) -> int:
    return int(_MAPPING.key(us)) if us else _ZERO
