"""The race: fastns and its rivals start the same program. See __main__.py."""
