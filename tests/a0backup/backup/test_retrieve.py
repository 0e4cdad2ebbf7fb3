"""What follows a failed attempt to get the bytes: a retry, giving up if the operator asked for it, or failure."""

import pytest

from a0backup.backup.retrieve import Next, after_failure
from a0backup.errors import (
    A0BackupError,
    A0cliTimeoutError,
    GzipDamagedError,
    Md5MismatchError,
    Md5MissingError,
    RefusedError,
    RetrieveFailedError,
    VaultFullError,
)

MISMATCH = Md5MismatchError("a0-1", "a" * 32, "b" * 32)
NOTHING_CAME = RetrieveFailedError("a0-1", "backup", 1, "no file")
TIMEOUT = A0cliTimeoutError("a0-1", "backup-retrieve", "no end")
REFUSED = RefusedError("a0-1", "backup-retrieve", "refused")
CUT = GzipDamagedError("a0-1", "backup", "cut")
NO_MD5 = Md5MissingError("a0-1", "backup", "no md5")
FULL = VaultFullError("a0-1", "backup", 2, 1)


@pytest.mark.parametrize("may_give_up", [False, True])
@pytest.mark.parametrize(
    ("error", "following"),
    [(MISMATCH, Next.RETRY), (NOTHING_CAME, Next.RETRY), (TIMEOUT, Next.RETRY), (REFUSED, Next.FAIL)],
)
def test_a_transient_failure_is_retried_while_attempts_remain(
    error: A0BackupError, following: Next, may_give_up: bool
) -> None:
    assert after_failure(error, attempts=2, allowed=3, always_whole=True, may_give_up=may_give_up) is following


@pytest.mark.parametrize(
    ("error", "always_whole", "following"),
    [
        (MISMATCH, True, Next.GIVE_UP),
        (MISMATCH, False, Next.FAIL),
        (NO_MD5, True, Next.GIVE_UP),
        (CUT, True, Next.GIVE_UP),
        (NOTHING_CAME, True, Next.FAIL),
        (TIMEOUT, False, Next.FAIL),
        (FULL, True, Next.FAIL),
        (REFUSED, True, Next.FAIL),
    ],
)
def test_only_a_complete_but_unverifiable_backup_is_given_up_after_the_last_attempt(
    error: A0BackupError, always_whole: bool, following: Next
) -> None:
    known = {"attempts": 3, "allowed": 3, "always_whole": always_whole}
    assert after_failure(error, **known, may_give_up=True) is following  # type: ignore[arg-type]
    assert after_failure(error, **known, may_give_up=False) is Next.FAIL  # type: ignore[arg-type]
