"""A fault for each node: in one run, every way in which a backup fails while the password is in use."""

from typing import Any

from tests.system.redaction.room import Room

SAYS = 'a0cli[2911]: argv: ["backup", {}]'
OUT: dict[str, Any] = {"stream": "stdout", "forms": ["plain", "json"]}
ERR: dict[str, Any] = {"stream": "stderr", "forms": ["hex", "url"]}
NAME: dict[str, Any] = {"stream": "name", "forms": ["plain"]}
NODES = 16
# How each node must end, from a0-1 on, in the lines of the report.
ENDINGS = [
    *("stored", "stored", "stored", r"failed \(await\)", r"failed \(await\)", r"failed \(retrieve\)"),
    *(r"stored, not deleted", r"failed \(await\)", r"failed \(await\)", "stored", r"failed \(inspect\)"),
    *(r"failed \(inspect\)", "stored", r"failed \(verify\)", r"failed \(await\)", r"failed \(retrieve\)"),
]


def order_faults(room: Room) -> None:
    """Order a fault for every node except a0-1."""
    tell, says = room.appliances.tell, room.says
    says("a0-2", backup=OUT | {"text": SAYS})
    says("a0-3", backup=ERR | {"text": SAYS, "times": 2000})
    says("a0-4", backup_status=OUT | {"forms": ["repr", "large hex"], "exit": 0})
    says("a0-5", backup=ERR, backup_status=ERR | {"forms": ["base64", "url-safe base64"], "exit": 1})
    says("a0-6", backup_retrieve=OUT | {"forms": ["shell", "html"], "exit": 1})
    says("a0-7", backup_delete=ERR | {"forms": ["form", "plain"], "exit": 1})
    says("a0-8", backup=ERR | {"forms": ["plain", "repr"], "text": "permission denied: backup {}", "exit": 1})
    says("a0-9", backup=OUT | {"forms": ["plain", "base64"]})
    tell("a0-9", "backup", "hang", ignore_sigterm=True)
    says("a0-10", backup_status=NAME)
    tell("a0-11", "backup", "contents", are="noise")
    tell("a0-12", "backup", "contents", are="cut")
    says("a0-13", backup=OUT | {"forms": ["json", "hex"]})
    tell("a0-13", "backup", "kill_client", when="after")
    says("a0-14", backup_retrieve=OUT | {"forms": ["plain", "url"]})
    tell("a0-14", "backup-retrieve", "exit", code=3)
    tell("a0-14", "backup-retrieve", "flip")
    # a0-15 loses its private directory, a0-16 everything that the vault has of the node.
    says("a0-15", backup=OUT | {"wrecks": "."})
    says("a0-16", backup_retrieve=ERR | {"wrecks": "../.."})
