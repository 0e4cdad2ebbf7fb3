"""The output of one a0cli call."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Printed:
    """The output of one call: the first and last 32 KiB of each stream, the secrets replaced by ``***``.

    *secrets* are also to be removed from what is decoded of it: an escape may have hidden one.
    """

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    secrets: tuple[str, ...] = field(default=(), repr=False, compare=False)
