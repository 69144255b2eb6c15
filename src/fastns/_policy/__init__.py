"""Prepares, in the caller, what the kernel enforces: filters, Landlock, cgroups. A default start
needs nothing of it."""
