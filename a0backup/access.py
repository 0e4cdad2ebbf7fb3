"""Who else than this user and root can write a file, or put another in its place."""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

_MAX_LINKS = 40  # on the way to a file, as in the kernel


def others_can_write(path: Path) -> bool:
    """Return whether somebody else than this user and root can write *path*, or owns it. Raise OSError.

    A group of the user's own, as many systems give to each user, is no one else.
    """
    status = path.stat()
    others = 0o002 if _is_own_group(status.st_gid) and not has_acl(path) else 0o022
    if not status.st_mode & others and status.st_uid in (0, os.geteuid()):
        return False
    # As containers see what is mounted into them.
    return not os.statvfs(path).f_flag & os.ST_RDONLY


def others_can_replace(path: Path) -> bool:
    """Return whether somebody else than this user and root can put another file in place of *path*. Raise OSError."""
    return next(places_of_others(path), None) is not None


def places_of_others(path: Path) -> Iterator[Path]:
    """Yield each folder and link on the way to the file *path* that lets somebody else put another in its place.

    Raise OSError.
    """
    here, links, ahead = Path("/"), 0, [*reversed(path.absolute().parts[1:])]
    while ahead:
        if _others_can_replace_in(here):
            yield here
        name = ahead.pop()
        if name == "..":
            here = here.parent
        elif not (here / name).is_symlink():
            here /= name
        else:
            link, links = here / name, links + 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            if link.lstat().st_uid not in (0, os.geteuid()) and not os.statvfs(here).f_flag & os.ST_RDONLY:
                yield link
            target = link.readlink()
            here = Path("/") if target.is_absolute() else here
            ahead += reversed(target.parts[target.is_absolute() :])


def _others_can_replace_in(folder: Path) -> bool:
    """Return whether somebody else than this user and root can replace what is in *folder*. Raise OSError.

    In a folder like /tmp, others can make files, and cannot replace those of this user.
    """
    status = folder.stat()
    sticky = bool(status.st_mode & stat.S_ISVTX) and status.st_uid in (0, os.geteuid())
    return others_can_write(folder) and not sticky


def has_acl(path: Path | int) -> bool:
    """Return whether an access control list says who may use *path*: the bits of its group are then those of others."""
    if not hasattr(os, "getxattr"):
        return False
    try:
        os.getxattr(path, "system.posix_acl_access")
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.ENOTSUP)
    return True


def _is_own_group(gid: int) -> bool:
    """Return whether *gid* is the group that many systems give to each user, and this user is its only member."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return gid == os.getegid() == os.geteuid()
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
