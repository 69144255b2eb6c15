"""Tests of the README, the guide, the reference and the examples."""
