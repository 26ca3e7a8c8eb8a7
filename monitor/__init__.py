"""The conmond daemon."""
