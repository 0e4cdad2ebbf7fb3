"""An a0cli that says the password: on each stream, in each form, with the start and in any later reply.

It keeps what it was told beside itself, where nothing is searched, and has the simulator's a0cli do the rest. Beside it
lie `a0cli.json`, with the path of that one, and for each port a `PORT.json`: by command, what to say and how to end.
"""

import base64
import html
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.parse
from pathlib import Path

HERE = Path(sys.argv[0]).parent
FORMS = {
    "plain": str,
    "json": json.dumps,
    "repr": repr,
    "shell": shlex.quote,
    "html": html.escape,
    "hex": lambda secret: secret.encode().hex(),
    "large hex": lambda secret: secret.encode().hex().upper(),
    "url": lambda secret: urllib.parse.quote(secret, safe=""),
    "form": urllib.parse.quote_plus,
    "base64": lambda secret: base64.b64encode(f"backup:{secret}:".encode()).decode(),
    "url-safe base64": lambda secret: base64.urlsafe_b64encode(f":{secret}:".encode()).decode(),
    "colours": lambda secret: f"{secret[:5]}\x1b[31m{secret[5:]}\x1b[0m",
}


def main() -> None:
    arguments = sys.argv[1:]
    real = json.loads((HERE / "a0cli.json").read_text())
    words = list(arguments)
    port = words[words.index("-p") + 1] if "-p" in words else ""
    command = next((word for word in words[4:]), "")
    told = HERE / f"{port}.told"
    if command in ("backup", "backup-sensitive", "user-export"):
        with told.open("a", encoding="utf-8") as record:
            record.write(json.dumps(next(word for word in words[5:] if word != "--password")) + "\n")
    with (HERE / "environments").open("ab") as record:
        record.write(b"\0".join(name + b"=" + value for name, value in os.environb.items()) + b"\n")
    script = HERE / f"{port}.json"
    said = json.loads(script.read_text()).get(command) if script.exists() else None
    if said is None or not told.exists():
        os.execv(real, [real, *arguments])
    secret = json.loads(told.read_text(encoding="utf-8").splitlines()[-1])
    if said.get("in the name"):
        reply = subprocess.run([real, *arguments], stdout=subprocess.PIPE, text=True, check=False)
        name = json.dumps(f"{secret}.tar.gz")
        sys.stdout.write(re.sub(r'("name": ?)"[^"]*"', lambda found: found[1] + name, reply.stdout))
        sys.exit(reply.returncode)
    stream = {"stdout": sys.stdout, "stderr": sys.stderr}[said["stream"]]
    text = " ".join(FORMS[form](secret) for form in said["forms"])
    stream.buffer.write((said.get("text", "{}").replace("{}", text) + "\n").encode() * said.get("times", 1))
    stream.flush()
    if said.get("exit") is not None:
        sys.exit(said["exit"])
    os.execv(real, [real, *arguments])


if __name__ == "__main__":
    main()
