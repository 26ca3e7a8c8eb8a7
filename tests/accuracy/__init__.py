"""``make accuracy``: each figure of many real programs against an independent truth."""
