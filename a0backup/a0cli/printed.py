"""What one call of a0cli left."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """What one call left: the first and last 32 KiB of each stream, the secret replaced by ``***``."""

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
