"""What the kernel enforces: seccomp filters, Landlock rules, cgroups and ranges of ids."""
