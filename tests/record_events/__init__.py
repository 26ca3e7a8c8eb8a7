"""Records what the kernel side reports of real programs, for tests/unit/test_replay.py."""
