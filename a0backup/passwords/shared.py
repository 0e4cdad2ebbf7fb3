"""Where the password of a node backup comes from.

The step that uses the password loads it. No error ever quotes it, not even in part.
"""

import codecs
import os
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from a0backup.a0cli.characters import BLANKS
from a0backup.errors import PasswordError
from a0backup.passwords.secret_file import read_secret

LONGEST = 4096

# Unicode's categories of characters without a shape: formats, spaces, separators, and code points without a meaning.
_INVISIBLE = ("Cf", "Zs", "Zl", "Zp", "Co", "Cn", "Cs")


class Source(Protocol):
    """Where fleet.yaml says that a password comes from: exactly one of the four is set.

    One that is not *for_a0cli* may be a text that a0cli could not take.
    """

    @property
    def for_a0cli(self) -> bool: ...

    @property
    def secret_block(self) -> str | None: ...
    @property
    def env(self) -> str | None: ...
    @property
    def file(self) -> Path | None: ...
    @property
    def sealed_to(self) -> Sequence[Path] | None: ...


# Loads the shared password of fleet.yaml, None if each backup has its own. Raises PasswordError.
LoadShared = Callable[[Source], Awaitable[str | None]]


def describe(source: Source) -> str:
    """Return the source of the password, for messages."""
    if source.sealed_to is not None:
        return "a new random password for each backup, sealed to " + ", ".join(str(path) for path in source.sealed_to)
    if source.env is not None:
        return f"environment variable {source.env}"
    if source.file is not None:
        return f"file {source.file}"
    return f"Secret block {source.secret_block}"


async def load(source: Source, *, block: Callable[[str], Awaitable[object]], opening: bool = False) -> str | None:
    """Return the shared password from *source*; *block* reads a Secret block of the engine by its name.

    Return None if each backup has its own password. With *opening*, accept every password that may have made an
    artifact. Raise PasswordError, which never quotes the password, if there is none or a0cli, if it is for that,
    could not take it.
    """
    if source.sealed_to is not None:
        return None
    where, for_a0cli = describe(source), source.for_a0cli
    if source.env is not None:
        text = os.environ.get(source.env)
        if text is None:
            raise PasswordError(where, "it is not set", f"export {source.env} in the environment of the run")
        return checked(text, where, opening=opening, for_a0cli=for_a0cli)
    if source.file is not None:
        return checked(_read(Path(source.file), where), where, opening=opening, for_a0cli=for_a0cli)
    if source.secret_block is None:
        raise PasswordError("fleet.yaml", "it names no source", "name one under `password`")
    failure = ""
    try:
        value = await block(source.secret_block)
    except PasswordError:
        raise
    except Exception as error:  # noqa: BLE001 - the engine's many errors may quote the value of the block
        failure = type(error).__name__
    # Raised here, because an error raised in the handler would keep the other one as its context.
    if failure:
        raise PasswordError(where, f"it cannot be loaded ({failure})", f"create the Secret block {source.secret_block}")
    if not isinstance(value, str):
        raise PasswordError(where, "it does not hold a text", "store the password as a text, not as JSON")
    return checked(value, where, opening=opening, for_a0cli=for_a0cli)


def read_file(path: Path, where: str, *, for_a0cli: bool = True) -> str:
    """Return the password from a file that only its owner may read. Raise PasswordError, which names *where*."""
    return checked(_read(path, where), where, for_a0cli=for_a0cli)


def _read(path: Path, where: str) -> str:
    remedy = f"write the password into {path} and `chmod 600 {path}`"
    octets = read_secret(path, LONGEST + 1, where=where, remedy=remedy).removesuffix(b"\n")
    if octets.endswith(b"\r"):
        raise PasswordError(where, "it has Windows line ends (CR LF)", f"remove them: sed -i 's/\\r$//' {path}")
    if len(octets) > LONGEST:
        raise PasswordError(where, "it is longer than 4 KiB", remedy)
    if octets.startswith(codecs.BOM_UTF8):
        raise PasswordError(
            where, "it begins with a byte order mark", f"remove it: sed -i '1s/^\\xEF\\xBB\\xBF//' {path}"
        )
    text = octets.decode(errors="replace")
    if text.encode() != octets:
        raise PasswordError(where, "it is not UTF-8", remedy)
    return text


def checked(text: str, where: str, *, opening: bool = False, for_a0cli: bool = True) -> str:
    """Return *text* if a0cli can take it as a password. Otherwise raise PasswordError, which names *where*.

    A new backup needs one that a person can also see and retype; *opening* one does not. What is not *for_a0cli* may
    also look like an option.
    """
    octets = text.encode(errors="replace")
    if octets.decode() != text:
        raise PasswordError(where, "it is not UTF-8", "store the password as UTF-8 text")
    reason = (
        "it is empty"
        if not octets
        else "it is longer than 4 KiB"
        if len(octets) > LONGEST
        else "it holds a NUL byte"
        if b"\0" in octets
        # Typed, or read by openssl from a file, a password ends at the first line break.
        else "it holds a line break or another control character"
        if any(unicodedata.category(char) == "Cc" for char in text)
        else "it starts with '-', which a0cli would read as an option"
        if for_a0cli and octets.startswith(b"-")
        else ""
        if opening or not for_a0cli
        else _invisible(text)
    )
    if reason:
        raise PasswordError(where, reason, "choose another password; letters and digits suit a0cli best")
    return text


def _invisible(text: str) -> str:
    """Return which character of *text* nobody can see, and thus retype, and where it is; empty if there is none."""
    for number, char in enumerate(text, start=1):
        at_an_end = char == " " and number in (1, len(text))
        if at_an_end or char in BLANKS or (char != " " and unicodedata.category(char) in _INVISIBLE):
            return (
                f"its character {number} of {len(text)} is invisible (U+{ord(char):04X} {unicodedata.name(char, '')})"
            )
    return ""


TWO_ENCODINGS = (
    "the password has a character with two encodings, such as an accented letter; typed on another machine, it may not "
    "open the backups: choose letters and digits"
)


def has_two_encodings(text: str) -> bool:
    """Return whether a character of *text* has more than one encoding, so that retyping may give other bytes."""
    return unicodedata.normalize("NFC", text) != unicodedata.normalize("NFD", text)
