"""The race: the same start of the same program by fastns and its rivals. See __main__.py."""
