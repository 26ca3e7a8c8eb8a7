"""monitor.correlate.search: which names a resolver tried for one that was asked of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.correlate.search import is_next_try, stem_of


def wire(name: str) -> bytes:
    return b"".join(bytes([len(x)]) + x.encode() for x in name.split(".") if x) + b"\0"


@pytest.mark.parametrize(
    ("tries", "stem"),
    [
        ("api.other.ns.svc.test api.other.svc.test", "api.other"),
        ("api.ns.svc.test api.svc.test api.test api", "api"),
        # a domain of the host's own follows the cluster's
        ("api.ns.svc.test api.svc.test api.corp.example api", "api"),
        ("www.example.com www.example.com.ns.svc.test www.example.com.svc.test", "www.example.com"),
        ("none.example.search.example none.example", "none.example"),
        ("db db.one.test db.two.test", "db"),
    ],
)
def test_names_that_a_search_list_makes_of_one(tries: str, stem: str) -> None:
    assert stem_of([wire(x) for x in tries.split()]) == wire(stem)[:-1]


@pytest.mark.parametrize(
    "tries",
    [
        "www.one.test www.two.test",  # as well two names that somebody asked for
        "www.google.com www.google.de",
        "one.example two.example",
        "mail.one.test www.one.test",
        "api.ns.svc.test api.svc.test web.svc.test",
        "apiary.test api.test",  # no label of it
        "one.test one.test",
    ],
)
def test_names_that_have_little_in_common_are_of_no_list(tries: str) -> None:
    names = [wire(x) for x in tries.split()]
    assert stem_of(names) is None or names[0] == names[1]
    if names[0] != names[1]:
        assert not is_next_try(names[:-1], names[-1])


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=6))
def test_any_bytes_are_judged_without_raising(tries: list[bytes]) -> None:
    stem_of([x + b"\0" for x in tries])
