"""Which node backups are the same, and which may be."""

import pytest

from a0backup.a0cli.status import Found
from a0backup.identity import BackupIdentity

NAME, OTHER, MD5, MORE = "04-06-2016-15-04-30.tar.gz", "05-06-2016-15-04-30.tar.gz", "a" * 32, "b" * 32


@pytest.mark.parametrize(
    ("one", "other", "equal", "may_be"),
    [
        ((NAME, MD5), (NAME, MD5), True, True),
        ((NAME, MD5), (NAME, MORE), False, False),
        ((NAME, MD5), (OTHER, MD5), False, False),
        ((NAME, MD5), (NAME, None), False, True),
        ((NAME, None), (NAME, None), True, True),
        ((NAME, None), (OTHER, None), False, False),
    ],
)
def test_a_missing_md5_proves_nothing(
    one: tuple[str, str | None], other: tuple[str, str | None], equal: bool, may_be: bool
) -> None:
    a, b = (BackupIdentity(name=name, md5=md5) for name, md5 in (one, other))
    assert (a == b, b == a) == (equal, equal)
    assert (a.may_be(b), b.may_be(a)) == (may_be, may_be)


def test_a_found_backup_is_identified_by_its_name_and_md5_alone() -> None:
    assert Found(NAME, None, "no md5").identity == Found(NAME, None, "md5 'x'").identity
    assert Found(NAME, MD5).identity == BackupIdentity(name=NAME, md5=MD5)
