"""Makes each system call of a start fail (`make faults`). See __main__.py."""
