"""Faults of any system call, at any moment of a start: `make faults`. See __main__.py."""
