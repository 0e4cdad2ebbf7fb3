"""The output of one a0cli call."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """The output of one call: the first and last 32 KiB of each stream, the secret replaced by ``***``."""

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
