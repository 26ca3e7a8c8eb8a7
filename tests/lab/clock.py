"""Keeping time on a busy machine."""

from __future__ import annotations

import contextlib
import os

# Above every ordinary thread, below nothing that matters: a wait must end when it is over.
PRIORITY = 10


def be_punctual() -> None:
    """Let the calling thread run as soon as it can; without the right to, it stays as it was.

    What it starts afterwards is ordinary again, so programs under test are not affected.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
