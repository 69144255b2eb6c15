"""Prepares, in the caller, what the kernel enforces: filters, Landlock, cgroups, ranges of ids."""
