"""Another a0cli than the simulator's: it follows the vendor's page, with its own wording where the page leaves it open.

Copied next to a `words.json` and a `node/` folder and made executable, it is tool and node in one. `words.json` holds
the templates of its output. Its behaviour is that of the page.
"""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent
WORDS = json.loads((HOME / "words.json").read_text())
NODE = HOME / "node"
HELD = NODE / "held.bin"


def say(what, **values):
    words = WORDS[what]
    if isinstance(words, str):
        words = {"stdout": words}
    for stream in ("stdout", "stderr"):
        text = words.get(stream, "")
        for key, value in values.items():
            text = text.replace("{" + key + "}", str(value))
        getattr(sys, stream).write(text)
    sys.exit(words.get("exit", 0))


def dump(content):
    """Return a tar.gz with one member."""
    packed = io.BytesIO()
    # Without a timestamp: the same content gives the same bytes every night.
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        member = tarfile.TarInfo("dump/users.txt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content.encode()))
    return packed.getvalue()


def encrypted(plain, password):
    """Encrypt in the way that matches the page's decryption command."""
    command = ["openssl", "enc", "-aes-256-ctr", "-md", "md5", "-nosalt", "-pass", "stdin", "-in", HOME / "plain"]
    (HOME / "plain").write_bytes(plain)
    return subprocess.run(command, input=f"{password}\n".encode(), capture_output=True, check=True).stdout


def main(arguments):  # noqa: C901 - one branch per command
    with (NODE / "calls").open("a") as calls:
        calls.write(json.dumps(arguments[:1] if arguments[:1] != ["-t"] else arguments[4:5]) + "\n")
    if not arguments:
        say("commands")
    assert arguments[0] == "-t", arguments
    assert arguments[2] == "-p", arguments
    command, *rest = arguments[4:]
    if not Path("appliance.key").exists():
        say("no_key")
    if command == "update-commands":
        Path("appliance.commands").write_text("known")
        say("updated")
    if not Path("appliance.commands").exists():
        say("no_key")
    if command == "ping":
        say("pong")
    started = NODE / "started"
    ready = started.exists() and time.time() > float(started.read_text())
    if command == "backup":
        if started.exists():
            say("exists")
        [password] = rest
        HELD.write_bytes(encrypted(dump(str(WORDS.get("content") or time.time_ns())), password))
        started.write_text(str(time.time() + 1))
        say("started")
    if command == "backup-status":
        if not started.exists():
            say("absent")
        if not ready:
            say("running")
        say("found", name="2026-11-23.tar.gz", md5=hashlib.md5(HELD.read_bytes()).hexdigest())
    if command == "backup-retrieve":
        Path("backup.tar.gz.enc").write_bytes(HELD.read_bytes())
        say("retrieved")
    if command == "backup-delete":
        started.unlink()
        say("deleted")
    say("no_key")


main(sys.argv[1:])
