"""The `a0backup` command, one file per group of commands. Each loads, calls the core or runs a flow, and prints."""
