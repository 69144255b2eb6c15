"""Tests of README, the guide, the reference and the examples."""
