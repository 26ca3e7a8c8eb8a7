"""Programs that could notice conmond do not: alone, watched, and while it comes and goes.

``CONMOND_ZOO`` is the number of rounds of each species in each state (2 by default); with 100 and
more, conmond is stopped for 30 s at a time.
"""

from __future__ import annotations

import pytest

from tests.zoo.table import SPECIES, Species

pytestmark = [pytest.mark.kernel, pytest.mark.seconds(86_400)]

SLOWER, LATER_S = 3.0, 0.5


def different(phase, species: Species) -> list[str]:
    rounds = phase.rounds[species.name]
    if species.notices:  # others' probes, too
        rounds = [one for one in rounds if one.alone]
    return [difference for one in rounds if (difference := one.differs(species))]


@pytest.mark.parametrize("species", SPECIES, ids=lambda species: species.name)
def test_it_does_not_notice(species: Species, outcome) -> None:
    if reason := outcome.lacking.get(species.name):
        pytest.skip(reason)
    assert different(outcome.control, species) == [], "differs without conmond"
    probed = set() if species.mute else outcome.control.said(species, lambda one: one.alone)
    assert probed == set(), "something else has probes here"
    if species.notices:
        pytest.xfail(species.notices)
    for state in ("watched", "coming_and_going"):
        phase = getattr(outcome, state)
        wrong = different(phase, species)
        rounds = len(phase.rounds[species.name])
        assert wrong == [], f"{len(wrong)} of {rounds} rounds differ ({state})"
    saw = outcome.watched.saw(species) | outcome.coming_and_going.saw(species)
    assert saw >= species.probes, "it was not probed: this shows nothing"
    most_s = SLOWER * outcome.control.median_s(species.name) + LATER_S
    assert outcome.watched.median_s(species.name) < most_s


def test_conmond_came_and_went_meanwhile(outcome) -> None:
    assert outcome.cycles >= 1
