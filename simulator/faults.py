"""The faults that can be ordered, and which of them are in force for a node. README.md shows each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = {"backup": "Backup", "backup-sensitive": "Sensitive backup", "user-export": "User export"}
# The health endpoints: requests of any client, and no commands of a0cli.
HEALTH = (
    "testall",
    *(f"status/{x}" for x in ("cpu", "memory", "disk", "services", "network", "internet", "email", "db", "replicaset")),
)
ANY = ("start", "status", "retrieve", "delete", "role", "other")


class OrderError(ValueError):
    """An invalid order on the control socket or in a scenario."""


@dataclass(frozen=True)
class Fault:
    on: tuple[str, ...]  # the groups of commands that it applies to, or ("node",)
    settings: Mapping[str, Any] = field(default_factory=dict)  # every setting, with its default
    one_of: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    only_on: Mapping[Any, tuple[str, ...]] = field(default_factory=dict)  # what a value of `when` narrows `on` to


KILL = {"when": "after", "fraction": 0.5}
KILL_WHEN = {"when": ("before", "during", "after")}
ONLY_TRANSFERS = {"during": ("retrieve",)}

# How a node may spoil a backup whose md5 is right: encrypted with another password, not compressed, a gzip with a
# flipped bit, a truncated gzip, a whole gzip of a truncated tar, a whole tar of a dump with a truncated document, a
# whole dump without users.
SPOILT = ("noise", "uncompressed", "flipped", "cut", "cut_tar", "torn_document", "empty_users", "unchanged")

FAULTS = {
    # time
    "latency": Fault(ANY, {"seconds": 1.0}),
    "hang": Fault(ANY, {"ignore_sigterm": False}),
    "duration": Fault(("start",), {"seconds": 60.0}),
    "late": Fault(("start", "delete", "role"), {"seconds": 2.0, "reply": "lost"}, {"reply": ("lost", "hang", "ok")}),
    "drip": Fault(("retrieve",), {"bytes_per_second": 65536}),
    # the transfer
    "drop": Fault(("retrieve",), {"fraction": 0.5}),
    "truncate": Fault(("retrieve",), {"fraction": 0.5}),
    "flip": Fault(("retrieve",), {"fraction": 0.5}),
    "file_name": Fault(("retrieve",), {"name": "backup.tar.gz.enc"}),
    "size": Fault(("start",), {"bytes": 1 << 20}),
    "contents": Fault(("start",), {"are": "noise"}, {"are": SPOILT}),
    # what the status says
    "wrong_md5": Fault(("status",)),
    "no_md5": Fault(("status",)),
    "bad_md5": Fault(("status",), {"value": "not-an-md5"}),
    "in_progress": Fault(("status",)),
    "stale_status": Fault(("status",), {"seconds": 2.0}),
    # wording
    "bad_json": Fault(ANY),
    "missing_comma": Fault(("status",)),
    "pretty": Fault(ANY),
    "colours": Fault(ANY),
    "banner": Fault(ANY, {"before": "*** PSaaS Appliance CLI ***\n", "after": "\nUpdate available: 1.7.0\n"}),
    "say": Fault(
        ANY,
        {"stdout": "", "stderr": "", "exit": None, "when": None},
        {"when": (None, "done", "refused", "found", "absent", "in progress")},
        {
            "done": ("start", "retrieve", "delete", "role", "other"),
            "found": ("status",),
            "absent": ("status", "retrieve", "delete"),
            "in progress": ("status",),
        },
    ),
    "exit": Fault(ANY, {"code": 1}),
    # what is done
    "refuse": Fault(
        ANY,
        {"message": "error: permission denied\n", "exit": 1, "stream": "stderr"},
        {"stream": ("stdout", "stderr")},
    ),
    "false_delete": Fault(("delete",)),
    "lost_reply": Fault(ANY),
    "kill_parent": Fault(ANY, {**KILL, "orphan": None}, KILL_WHEN, ONLY_TRANSFERS),
    "kill_client": Fault(ANY, KILL, KILL_WHEN, ONLY_TRANSFERS),
    # another desk
    "replaced": Fault(("status", "retrieve"), {"password": "laid by another hand"}),
    "taken": Fault(("status", "retrieve")),
    # the health endpoints
    "unwell": Fault(("health",)),
    "health_answer": Fault(("health",), {"status": 500, "reason": "", "headers": {}, "body": ""}),
    "health_silent": Fault(("health",)),
    "health_endless": Fault(("health",), {"what": "body"}, {"what": ("body", "headers", "drip")}),
    "no_role": Fault(("node",)),
    "backup_folder": Fault(("node",)),
    "unreachable": Fault(("node",), {"seconds": None}),
}


def kind_of(command: str) -> str:
    """Return the kind whose family *command* belongs to; meaningless for the other commands."""
    return command if command in KINDS else command.rpartition("-")[0]


def group_of(command: str) -> str:
    """Return start, status, retrieve or delete for the commands of a kind, role or other for the rest."""
    if command in KINDS:
        return "start"
    if command == "set-as-backup":
        return "role"
    if command in HEALTH:
        return "health"
    return command.rpartition("-")[2] if kind_of(command) in KINDS else "other"


@dataclass(eq=False)
class Rule:
    """A fault as ordered for one node: it lets *skip* calls pass, then meets *left* calls, or all where None."""

    command: str | None
    fault: str
    left: int | None
    skip: int
    settings: dict[str, Any]


class Rules:
    """The faults in force for one node, oldest first."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(
        self, fault: str, command: str | None, times: int | None, skip: int | None, settings: Mapping[str, Any]
    ) -> Rule:
        """Put a fault in force. Raise OrderError, naming what would be valid, where no call could ever meet it."""
        if fault not in FAULTS:
            raise OrderError(f"there is no fault {fault}; there are {', '.join(FAULTS)}")
        known, command = FAULTS[fault], None if command == "*" else command
        if unknown := settings.keys() - known.settings.keys():
            raise OrderError(f"{fault} has no setting {', '.join(sorted(unknown))}; it has {', '.join(known.settings)}")
        wanted = {**known.settings, **settings}
        for name, choices in known.one_of.items():
            if wanted[name] not in choices:
                raise OrderError(f"{fault}: {name} is one of {', '.join(map(str, choices))}")
        if not 0 <= wanted.get("fraction", 0) <= 1:
            raise OrderError(f"{fault}: fraction is from 0 to 1")
        when = wanted.get("when")
        on, what = (known.only_on[when], f"{fault} with when={when}") if when in known.only_on else (known.on, fault)
        if command is not None and group_of(command) not in on:
            raise OrderError(f"{what} is not for {command}; it is for {', '.join(on)}")
        if known.on == ("node",) and (times is not None or skip is not None):
            raise OrderError(f"{fault} is about a node, not about calls: it cannot be counted")
        if (times is not None and times < 1) or (skip is not None and skip < 0):
            raise OrderError(f"{fault}: times is 1 or more, and skip 0 or more")
        # With its name among them, the settings are truthy even for a fault that has none.
        rule = Rule(command, fault, times, skip or 0, wanted | {"fault": fault})
        self._rules.append(rule)
        return rule

    def drop(self, rule: Rule) -> None:
        if rule in self._rules:
            self._rules.remove(rule)

    def clear(self, fault: str | None = None) -> None:
        self._rules = [rule for rule in self._rules if fault not in (None, rule.fault)]

    def has(self, fault: str) -> bool:
        return any(rule.fault == fault for rule in self._rules)

    def meet(
        self, command: str, fault: str, fits: Callable[[dict[str, Any]], bool], **wanted: object
    ) -> dict[str, Any] | None:
        """Count a call that *fault* would meet now, and return the settings of the rule that meets it.

        Each rule counts every such call separately. Of the rules that have skipped their share, the oldest
        meets the call.
        """
        if group_of(command) not in FAULTS[fault].on:
            return None
        meeting = None
        for rule in self._rules:
            named = rule.fault == fault and rule.command in (None, command)
            if not (named and wanted.items() <= rule.settings.items() and fits(rule.settings)):
                continue
            if rule.skip:
                rule.skip -= 1
            elif meeting is None:
                meeting = rule
        if meeting is None:
            return None
        if meeting.left is not None:
            meeting.left -= 1
            if not meeting.left:
                self.drop(meeting)
        return meeting.settings
