"""The only table of known messages. A message counts only as a whole."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from a0backup.a0cli.text import normalised, quote
from a0backup.errors import FleetFileError


class Meaning(StrEnum):
    """The meaning of a message; the values are the keys of `a0cli.replies` in fleet.yaml."""

    PONG = "pong"
    FOUND = "found"
    IN_PROGRESS = "in_progress"
    ABSENT = "absent"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    IGNORE = "ignore"  # a line that may stand beside any reply
    UNKNOWN = "unknown"


_KNOWN = {
    "pong": Meaning.PONG,
    "backup found": Meaning.FOUND,
    "user export found": Meaning.FOUND,
    "backup in progress": Meaning.IN_PROGRESS,
    "no backup found": Meaning.ABSENT,
}


_THING = (
    r"(?:(?:user|sensitive|previous|existing|current|stored|available|encrypted|such) )*"
    r"(?:backup|export)s?(?: (?:file|archive)s?)?"
)


_MACHINE = r"(?:(?:this|the|that|your|target|remote) )*(?:node|appliance|instance|server|host|device|system|target)"
_WHERE = (
    rf"(?: (?:on|for|at|in|from) {_MACHINE}| here| there| now| currently| at the moment| at this time| so far| at all"
    r"| to (?:retrieve|download|delete|fetch|show|list|report))*"
)


_BEING = r"(?: (?:is|are|was|were|has|have|does|do|been))*"
_ABSENT = re.compile(
    rf"(?:(?:sorry|currently|there (?:is|are|was|were)) )*(?:no|0|zero) {_THING}"
    rf"(?:{_BEING}(?: (?:found|available|present|stored|exists?|existing|made|taken|created|kept))?"
    rf"| (?:can|could) be (?:found|located)){_WHERE}(?: yet)?"
    rf"|(?:(?:a|the|any) )?{_THING}{_BEING} not(?: been| currently)*"
    rf" (?:found|available|present|exist|existing|there|here|located){_WHERE}"
    rf"|(?:nothing|none)(?: (?:is|was))?"
    rf"(?: (?:found|available|present|stored|kept|here|there)| to (?:retrieve|download|fetch)){_WHERE}(?: yet)?"
    rf"|(?:{_MACHINE}|you)(?: currently)? (?:has|have|holds?|contains?|keeps?|stores?) no {_THING}{_WHERE}(?: yet)?"
    rf"|(?:{_MACHINE}|you) (?:does|do) not(?: currently)? (?:have|hold|contain|keep|store)(?: an?| any)? {_THING}"
    rf"{_WHERE}(?: yet)?"
)


_AT_IT = (
    r"(?:in progress|in process|under ?way|running|ongoing|pending|queued|processing|started|incomplete|unfinished"
    r"|being (?:made|created|taken|prepared|generated|built|written|encrypted|compressed|processed)"
    r"|not(?: yet)? (?:ready|finished|complete|completed|done)(?: yet)?)"
)


_IN_PROGRESS = re.compile(
    rf"(?:(?:there is |an? |the |another |your )*{_THING}(?: process| job| task)?{_BEING}"
    rf"(?: (?:currently|still|already|now|just))*|still|already|currently)? ?{_AT_IT}{_WHERE}"
    r"(?:[.,;:]? (?:please )?(?:wait|be patient|(?:try|check) again(?: later)?))?"
    r"|(?:still |currently )?(?:creating|making|generating|preparing|taking|building|performing|compressing)"
    rf" (?:a |the |your )?{_THING}{_WHERE}"
    r"|please wait"
)


_SHARE_DONE = re.compile(r"[ :,(\[-]*\d{1,3}(?:\.\d{1,4})? ?%(?: (?:complete|completed|done))?[)\]]?$")
_FOUND = re.compile(
    rf"(?:(?:an?|the|1|one|your|latest|last) )*(?:finished |completed )?{_THING}{_BEING}"
    r" (?:found|ready|available|complete|completed|finished|done|present|exists?|created|made|stored|successful)"
    rf"(?: successfully)?{_WHERE}(?: for (?:retrieval|download)| to be (?:retrieved|downloaded))?"
    rf"|(?:found|there is)(?: (?:an?|the|1|one))?(?: (?:finished|completed))? {_THING}{_WHERE}"
    r"|found|ready|available|done|complete|completed|finished|ok|success"
)


UNREACHABLE_WORDS = re.compile(
    r"\b(?:econnrefused|econnreset|econnaborted|etimedout|ehostunreach|ehostdown|enetunreach|enetdown|enotfound"
    r"|eai_again|eai_noname|epipe|esockettimedout)\b"
    r"|connection (?:was |has been |is )?(?:refused|reset|closed|lost|aborted|timed out|terminated)"
    r"|(?:could not|cannot|can not|unable to|failed to) (?:connect|reach|resolve)|no route to host|unreachable"
    r"|network is down|host is down|timed out|socket hang up|name or service not known|getaddrinfo"
    r"|name resolution|connect(?:ion)? timeout|broken pipe"
)


REFUSED_WORDS = re.compile(
    r"(?:unknown|invalid|unrecogni[sz]ed|unsupported|no such|illegal|unexpected) (?:command|option|argument|subcommand)"
    r"|command (?:[\w'\"`-]+ )?(?:is )?(?:unknown|not (?:found|known|available|supported|recogni[sz]ed|allowed))"
    r"|not an? (?:known |valid |supported |a0cli )*command|not supported|missing (?:required )?argument"
    r"|\b(?:unauthori[sz]ed|forbidden|eacces|eperm)\b|not (?:authori[sz]ed|permitted|allowed)"
    r"|(?:permission|access) (?:is |was )?denied|authentication (?:failed|failure|error|required)"
    r"|http(?:/[\d.]+)? 40[13]\b|status(?: ?code)?[ :=]*40[13]\b"
    r"|\bno (?:(?:public|private|ssh|valid|such) )*keys?\b|\bkeys? (?:pair )?(?:is |are |was |were )?"
    r"(?:not (?:found|known|registered|accepted|valid)|missing|unknown|invalid|rejected)"
    r"|(?:unknown|invalid|missing|rejected|wrong) (?:(?:public|private|ssh) )?(?:key|signature|credentials)\b"
    r"|wrong role|(?:not|no|without)(?: in| have| has| an?| the| any)* backup (?:node|role|device|instance|server)"
    r"|not (?:configured|set|set up|enabled|designated) (?:as|for)(?: a| the)? backup"
)


_SENTENCE_END = re.compile("[.;]")
_ALREADY = re.compile(r"\balready\b")
_THERE = re.compile(r"\b(?:in progress|under ?way|exists?|running|started|present|stored|there)\b")
_EXISTS = re.compile(r"\bexists\b")
_TAKE_AWAY = re.compile(r"\b(?:delete|remove)\b")
_IN_THE_WAY = re.compile(
    r"\b(?:no|invalid|unknown|bad|wrong) (?:such )?(?:block )?device\b|\bno such file\b"
    r"|\bfolder exists\b|\buse (?:the )?force\b"
)
_DEVICE = re.compile(r"\bdevice\b")
_UNFIT = re.compile(r" (?:not (?:found|exist|there|available|valid|usable)|does not exist|busy|in use|mounted)\b")


# These look for two things in one sentence with one search each. One pattern with a gap between the two would take
# quadratic time on a hostile reply.


def says_already_there(normal: str) -> bool:
    """Return whether the reply to a start says that there is a backup; undocumented, with any exit code."""
    if any(_ALREADY.search(sentence) and _THERE.search(sentence) for sentence in _SENTENCE_END.split(normal)):
        return True
    exists = _EXISTS.search(normal)
    return exists is not None and _TAKE_AWAY.search(normal, exists.end()) is not None


def says_in_the_way(normal: str) -> bool:
    """Return whether the reply of set-as-backup is about a bad device or a folder in its way; undocumented as well."""
    if _IN_THE_WAY.search(normal):
        return True
    sentences = ((sentence, _DEVICE.search(sentence)) for sentence in _SENTENCE_END.split(normal))
    return any(device is not None and _UNFIT.search(sentence, device.end()) for sentence, device in sentences)


# How a line begins that reports an error, or only a warning, of any program.
_PROGRAM = r"(?:[\w./\[\]-]+(?: line \d+)?: (?:line \d+: )?)*"
ERROR_LINE = re.compile(rf"{_PROGRAM}(?:[a-z]*error|fatal|panic|traceback|[a-z]*exception)\b")
WARNING_LINE = re.compile(rf"{_PROGRAM}warn(?:ing)?\b")


# Words that make a reply untrustworthy, anywhere beside the message.
FAILURE_WORD = re.compile(
    r"(?<!\bno )(?<!\b0 )(?:\b[a-z]*error|\bfail(?:ed|ure|s)?|\bfatal|\b[a-z]*exception|\bdenied|\brefused|\brejected"
    r"|\babort(?:ed)?|\bcannot|\bunable|\bcorrupt(?:ed)?|\binvalid|\bpanic|\btraceback|\bcrashed|\bunavailable"
    r"|\bcould not|\bcancell?ed|\bmissing)\b"
)


PROGRESS_WORD = re.compile(r"\b(?:progress|pending|running|queued|ongoing|partial|incomplete|unfinished|being)\b|\d ?%")
NEGATION = re.compile(r"\b(?:no|not|none|nothing|never|without|deleted|removed|expired|stale|gone|empty)\b")
LONGEST_MESSAGE = 200


@dataclass(frozen=True)
class Wordings:
    """The built-in table of messages; the operator's wordings take precedence."""

    taught: Mapping[str, Meaning] = field(default_factory=dict)

    @classmethod
    def extended(cls, replies: Mapping[str, Sequence[str]]) -> "Wordings":
        """Return the built-in table, overridden by the operator's `a0cli.replies`.

        Raise FleetFileError for an unknown meaning, an empty wording, or a wording with two meanings.
        """
        taught: dict[str, Meaning] = {}
        problems = []
        for key, texts in replies.items():
            if key not in set(Meaning) - {Meaning.UNKNOWN}:
                problems.append(f"a0cli.replies.{quote(key, limit=40)}: not a meaning; use one of {_TEACHABLE}")
                continue
            for text in texts:
                normal = normalised(text)
                if not normal:
                    problems.append(f"a0cli.replies.{key}: an empty wording; write the whole message")
                elif taught.setdefault(normal, Meaning(key)) != key:
                    problems.append(f"a0cli.replies.{key}: {quote(text)!r} is also under {taught[normal]}; keep one")
        if problems:
            raise FleetFileError("fleet.yaml", problems)
        return cls(taught)


_TEACHABLE = ", ".join(meaning for meaning in Meaning if meaning is not Meaning.UNKNOWN)


def whole_meaning(text: str, wordings: Wordings) -> Meaning:
    """Return the meaning of a message that is known as a whole; FOUND proves nothing without name and md5 beside it."""
    normal = normalised(text)
    if known := wordings.taught.get(normal) or _KNOWN.get(normal):
        return known
    if len(normal) <= LONGEST_MESSAGE:
        if _ABSENT.fullmatch(normal):
            return Meaning.ABSENT
        if _IN_PROGRESS.fullmatch(_SHARE_DONE.sub("", normal)):
            return Meaning.IN_PROGRESS
        if _FOUND.fullmatch(normal):
            return Meaning.FOUND
    return Meaning.UNKNOWN


def meaning(text: str, wordings: Wordings) -> Meaning:
    """Return the meaning of one message: as a whole or, if it says that the call failed, by its words."""
    whole, normal = whole_meaning(text, wordings), normalised(text)
    if whole is not Meaning.UNKNOWN:
        return whole
    # A partial match is enough for these: they only end the polling sooner.
    if UNREACHABLE_WORDS.search(normal):
        return Meaning.UNREACHABLE
    if REFUSED_WORDS.search(normal):
        return Meaning.REFUSED
    return Meaning.UNKNOWN
