"""The faults that can be ordered, and which of them are in force for a node. README.md shows each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = {"backup": "Backup", "backup-sensitive": "Sensitive backup", "user-export": "User export"}
ANY = ("start", "status", "retrieve", "delete", "other")


class OrderError(ValueError):
    """An order on the control socket or in a scenario that means nothing."""


@dataclass(frozen=True)
class Fault:
    on: tuple[str, ...]  # the groups of commands that it makes sense for, or ("node",)
    settings: dict[str, Any] = field(default_factory=dict)  # every setting, with its default
    one_of: dict[str, tuple[object, ...]] = field(default_factory=dict)


FAULTS = {
    # time
    "latency": Fault(ANY, {"seconds": 1.0}),
    "hang": Fault(ANY, {"ignore_sigterm": False}),
    "duration": Fault(("start",), {"seconds": 60.0}),
    "late": Fault(("start", "delete"), {"seconds": 2.0, "reply": "lost"}, {"reply": ("lost", "hang", "ok")}),
    "drip": Fault(("retrieve",), {"bytes_per_second": 65536}),
    # the transfer
    "drop": Fault(("retrieve",), {"fraction": 0.5}),
    "truncate": Fault(("retrieve",), {"fraction": 0.5}),
    "flip": Fault(("retrieve",), {"fraction": 0.5}),
    "file_name": Fault(("retrieve",), {"name": "backup.tar.gz.enc"}),
    "size": Fault(("start",), {"bytes": 1 << 20}),
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
    "kill_parent": Fault(
        ANY, {"when": "after", "fraction": 0.5, "orphan": None}, {"when": ("before", "during", "after")}
    ),
    "no_role": Fault(("node",)),
    "unreachable": Fault(("node",), {"seconds": None}),
}


def kind_of(command: str) -> str:
    """Return the kind whose family *command* belongs to; meaningless for the other commands."""
    return command if command in KINDS else command.rpartition("-")[0]


def group_of(command: str) -> str:
    """Return start, status, retrieve or delete for the commands of a kind, other for the rest."""
    if command in KINDS:
        return "start"
    return command.rpartition("-")[2] if kind_of(command) in KINDS else "other"


@dataclass(eq=False)
class Rule:
    """A fault as it was ordered for one node; *left* is how many more calls it meets, None for all."""

    command: str | None
    fault: str
    left: int | None
    settings: dict[str, Any]


class Rules:
    """The faults in force for one node, oldest first."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(self, fault: str, command: str | None, times: int | None, settings: Mapping[str, Any]) -> Rule:
        """Put a fault in force. Raise OrderError, naming what would be right, if there is no such fault."""
        if fault not in FAULTS:
            raise OrderError(f"there is no fault {fault}; there are {', '.join(FAULTS)}")
        known, command = FAULTS[fault], None if command == "*" else command
        if command is not None and group_of(command) not in known.on:
            raise OrderError(f"{fault} is not for {command}; it is for {', '.join(known.on)}")
        if unknown := settings.keys() - known.settings.keys():
            raise OrderError(f"{fault} has no setting {', '.join(sorted(unknown))}; it has {', '.join(known.settings)}")
        for name, choices in known.one_of.items():
            if settings.get(name, known.settings[name]) not in choices:
                raise OrderError(f"{fault}: {name} is one of {', '.join(map(str, choices))}")
        if known.on == ("node",) and times is not None:
            raise OrderError(f"{fault} is about a node, not about calls: it cannot be counted")
        # The name among the settings makes them true even where a fault has none.
        rule = Rule(command, fault, times, {**known.settings, **settings, "fault": fault})
        self._rules.append(rule)
        return rule

    def drop(self, rule: Rule) -> None:
        if rule in self._rules:
            self._rules.remove(rule)

    def clear(self, fault: str | None = None) -> None:
        self._rules = [rule for rule in self._rules if fault not in (None, rule.fault)]

    def has(self, fault: str) -> bool:
        return any(rule.fault == fault for rule in self._rules)

    def find(self, command: str, fault: str, **wanted: object) -> Rule | None:
        if group_of(command) not in FAULTS[fault].on:
            return None
        for rule in self._rules:
            named = rule.fault == fault and rule.command in (None, command)
            if named and all(rule.settings[name] == value for name, value in wanted.items()):
                return rule
        return None

    def use(self, rule: Rule) -> dict[str, Any]:
        """Count one call that *rule* met, and return its settings."""
        if rule.left is not None:
            rule.left -= 1
            if rule.left <= 0:
                self.drop(rule)
        return rule.settings
