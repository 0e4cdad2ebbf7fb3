"""Turn the output of a0cli into typed replies.

The vendor documents only five replies (its page on the CLI); the wording of all others depends on the build.
Therefore a message counts only as a whole, compared without case, white space, colours and final full stop.
Nothing that means success is ever searched for *inside* a text ("No backup found" contains "backup found"). An
unknown reply, a contradictory one, or one with an exit code other than 0 is never a status.
"""

import json
from typing import TYPE_CHECKING

from a0backup.a0cli.statements import judge
from a0backup.a0cli.status import Absent, InProgress, Status
from a0backup.a0cli.text import normalised, quote
from a0backup.a0cli.wordings import (
    FAILURE_WORD,
    LONGEST_MESSAGE,
    NEGATION,
    PROGRESS_WORD,
    REFUSED_WORDS,
    UNREACHABLE_WORDS,
    Meaning,
    Wordings,
    meaning,
    says_already_there,
    says_in_the_way,
)
from a0backup.errors import A0cliError, RefusedError, UnknownReplyError, UnreachableError

if TYPE_CHECKING:
    from a0backup.a0cli.printed import Printed


LONGEST_NAME = 1000  # characters: the files of the vault that hold the name are read up to a limit


def read_status(printed: "Printed", *, node: str, command: str, wordings: Wordings) -> Status:
    """Return the status that a status command printed.

    Raise RefusedError, UnreachableError or UnknownReplyError for anything but a clear status with exit code 0, and
    for one with a name that is too long.
    """
    if printed.exit_code == 0:
        said, found, _ = judge(printed, wordings)
        if found is not None and len(found.name) > LONGEST_NAME:
            reason = f"the name of the backup has {len(found.name):,} characters, more than {LONGEST_NAME:,}"
            raise UnknownReplyError(node, command, reason, printed.exit_code)
        if found is not None:
            return found
        if said is Meaning.IN_PROGRESS:
            return InProgress()
        if said is Meaning.ABSENT:
            return Absent()
    raise refusal(printed, node=node, command=command, wordings=wordings)


def read_ping(printed: "Printed", *, node: str, wordings: Wordings) -> None:
    """Return if the node answered PONG with exit code 0.

    Raise RefusedError, UnreachableError or UnknownReplyError for anything else.
    """
    if printed.exit_code != 0 or judge(printed, wordings)[0] is not Meaning.PONG:
        raise refusal(printed, node=node, command="ping", wordings=wordings)


def refusal(
    printed: "Printed", *, node: str, command: str, wordings: Wordings
) -> RefusedError | UnreachableError | UnknownReplyError:
    """Return the error that explains why a call failed; UnknownReplyError if its wording is unknown."""
    said = judge(printed, wordings)[0]
    both = f"{printed.stdout}\n{printed.stderr}"
    if said not in (Meaning.REFUSED, Meaning.UNREACHABLE):
        said = Meaning.UNKNOWN
        if printed.exit_code != 0:
            normal = normalised(both)
            said = Meaning.REFUSED if REFUSED_WORDS.search(normal) else said
            said = Meaning.UNREACHABLE if UNREACHABLE_WORDS.search(normal) else said
    tail = quote(both)
    if said is Meaning.UNREACHABLE:
        return UnreachableError(node, command, "the node does not answer", printed.exit_code, tail)
    if said is Meaning.REFUSED:
        return RefusedError(node, command, "the command is refused", printed.exit_code, tail)
    reason = "the reply is not understood" if tail else "it printed nothing"
    return UnknownReplyError(node, command, reason, printed.exit_code, tail)


def made_nothing(printed: "Printed", said: A0cliError) -> bool:
    """Return whether a start, whose `refusal` is *said*, was refused, or reports that there is a backup already."""
    # A start that seems not to have reached the node may still have arrived.
    if isinstance(said, UnreachableError):
        return False
    if printed.exit_code != 0 and isinstance(said, RefusedError):
        return True
    return says_already_there(normalised(f"{printed.stdout}\n{printed.stderr}"))


def gave_no_role(printed: "Printed", said: A0cliError) -> bool:
    """Return whether a set-as-backup, whose `refusal` is *said*, reports a failure: refused, a folder, no device."""
    if printed.exit_code == 0 or isinstance(said, UnreachableError):
        return False
    return made_nothing(printed, said) or says_in_the_way(normalised(f"{printed.stdout}\n{printed.stderr}"))


def teach(printed: "Printed", wordings: Wordings | None = None) -> str:
    """Return the line for fleet.yaml that teaches the wording of an unknown reply.

    The meaning in it is a guess that the operator must check. The result is empty if the reply is already
    known or if no single message stands out in it.
    """
    said, _, telling = judge(printed, wordings or Wordings())
    messages = {statement.text for statement in telling if statement.meaning is Meaning.UNKNOWN}
    if said is not Meaning.UNKNOWN or len(messages) != 1:
        return ""
    beside = {statement.meaning for statement in telling} - {Meaning.UNKNOWN}
    (message,) = messages
    text = quote(message, limit=LONGEST_MESSAGE + 1)
    normal = normalised(text)
    if not normal or len(text) > LONGEST_MESSAGE or text.startswith("{"):
        return ""
    if meaning(text, wordings or Wordings()) is not Meaning.UNKNOWN:
        return ""  # the wording is known; other text in the reply makes it untrustworthy
    guess = Meaning.ABSENT
    if printed.exit_code != 0 or FAILURE_WORD.search(normal):
        guess = Meaning.REFUSED
    elif PROGRESS_WORD.search(normal) and not NEGATION.search(normal):
        guess = Meaning.IN_PROGRESS
    for candidate in (Meaning.IGNORE,) if beside else (guess, Meaning.FOUND):
        taught = judge(printed, Wordings({**(wordings.taught if wordings else {}), normal: candidate}))[0]
        if taught is candidate or taught in beside:
            return f"a0cli: {{replies: {{{candidate}: [{json.dumps(text, ensure_ascii=False)}]}}}}"
    return ""


def quoted(printed: "Printed") -> str:
    """Return the output of a call and how it ended as a short, printable text."""
    text = quote(f"{printed.stdout}\n{printed.stderr}".strip())
    return text if printed.exit_code == 0 else f"{text} (exit code {printed.exit_code})"
