"""The race: the same start of the same program by everything else there is. See __main__.py."""
