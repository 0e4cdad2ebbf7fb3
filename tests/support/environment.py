"""The environment of processes that tests start."""

import os


def unwatched() -> dict[str, str]:
    """Return this environment without coverage, which writes files, for a program whose system calls are traced."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
