"""The environment of what tests start."""

import os


def unwatched() -> dict[str, str]:
    """This process's environment for a program whose every call is looked at: coverage, too, writes files in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
