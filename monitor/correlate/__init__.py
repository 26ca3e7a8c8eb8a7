"""The pure core: events in, records out."""

from monitor.correlate.build import Clock, Facts
from monitor.correlate.core import Correlator, Lost
from monitor.correlate.identity import Identities, Identity

__all__ = ["Clock", "Correlator", "Facts", "Identities", "Identity", "Lost"]
