"""What conmonctl's commands print: one module a subject."""
