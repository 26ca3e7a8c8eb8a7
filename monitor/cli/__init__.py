"""The commands: conmond and conmonctl."""
