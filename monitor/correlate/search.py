"""Which names a resolver asked for one after the other because one name was asked of it. Pure.

A resolver with a search list ("ns.svc.test svc.test") asks for a name with each domain of it at
its end, and for the bare name, one after the other until one is found. On the wire only the tries
are seen. Two in a row are of one lookup where the one name is the other's beginning, or becomes
the other when labels in its middle are left out (a list mostly goes from a domain to the one above
it). Domains that have nothing in common prove nothing by themselves: www.one.test and www.two.test
are as well two names that somebody asked for.

Names are as in a message: a length before each label, and an empty label at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

__all__ = ["NEXT_TRY_NS", "is_next_try", "stem_of"]

NEXT_TRY_NS: Final = 100_000_000  # from one answer to the next try's question

_ROOT: Final = b"\0"


def stem_of(tries: Sequence[bytes]) -> bytes | None:
    """Return what the tries of one lookup, two or more, begin with, without the root's label; None
    where they are not of one."""
    stem = tries[0][:-1]
    sure = False
    for before, name in itertools.pairwise(tries):
        common, above = _parts(before, name)
        if name[:-1] and (before.startswith(name[:-1]) or name.startswith(before[:-1])):
            common = min(name, before, key=len)[:-1]
        elif not above and not (sure and name.startswith(stem)):
            return None
        stem = min(stem, common, key=len)
        sure = True
    if not stem or not all(name.startswith(stem) for name in tries):
        return None
    return stem


def is_next_try(tries: Sequence[bytes], name: bytes) -> bool:
    """Whether a name is another try of a lookup that made these already."""
    return stem_of([*tries, name]) is not None


# The labels that both names begin with, and whether the second one goes on with a domain above the
# one that the first goes on with.
def _parts(one: bytes, two: bytes) -> tuple[bytes, bool]:
    at = 0
    while at < min(len(one), len(two)) - 1 and one[at]:
        end = at + 1 + one[at]
        if one[at:end] != two[at:end]:
            break
        at = end
    rest = two[at:]
    return two[:at], bool(at) and rest != _ROOT and one[at:].endswith(rest) and one[at:] != rest
