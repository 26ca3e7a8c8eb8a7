"""What conmond costs on this machine: ``make bench``."""
