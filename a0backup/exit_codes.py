"""The exit codes of the command, defined only here."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended, for scripts."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SOME_FAILED = 3
    DAMAGED = 4
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "success",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "usage or fleet.yaml wrong",
    ExitCode.SOME_FAILED: "some nodes failed",
    ExitCode.DAMAGED: "a stored artifact is damaged, missing or too old, or a place is behind",
    ExitCode.INTERRUPTED: "interrupted",
}
