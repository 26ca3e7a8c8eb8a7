"""``python -m conmon``: probe URLs, list connections, time a Python program. Needs no daemon."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
