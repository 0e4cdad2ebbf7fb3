"""An a0cli that prints the password: on each stream, in each form, with the start and in any later reply.

It records what it was told beside itself, where nothing is searched, and lets the simulator's a0cli do the rest. Beside
it are `a0cli.json`, with the path of that a0cli, and a `PORT.json` for each port: by command, what to print and how to
end.
"""

import base64
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path

HERE = Path(sys.argv[0]).parent
FORMS: dict[str, Callable[[str], str]] = {
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
    port, command = arguments[3:4], arguments[4:5]  # after -t HOST -p; without a command it lists the available ones
    script = HERE / f"{''.join(port)}.json"
    record = script.with_suffix(".told")
    if command and command[0] in ("backup", "backup-sensitive", "user-export"):
        secret = next(word for word in arguments[5:] if word != "--password")
        with record.open("a", encoding="utf-8") as told:
            told.write(json.dumps([os.getppid(), secret]) + "\n")
    with (HERE / "environments").open("ab") as environments:
        environments.write(b"\0".join(name + b"=" + value for name, value in os.environb.items()) + b"\n")
    said = json.loads(script.read_text()).get("".join(command), {}) if script.exists() else {}
    secrets = [json.loads(line) for line in record.read_text().splitlines()] if said and record.exists() else []
    if said.get("which") != "of any run":
        secrets = [told for told in secrets if told[0] == os.getppid()]
    if not secrets:
        os.execv(real, [real, *arguments])
    secret = secrets[0 if said.get("which") == "the first" else -1][1]
    if where := said.get("wrecks"):
        wrecked = Path(where).resolve()
        shutil.rmtree(wrecked)
        wrecked.touch()
    text = " ".join(FORMS[form](secret) for form in said["forms"])
    if said["stream"] == "name":
        reply = subprocess.run([real, *arguments], stdout=subprocess.PIPE, text=True, check=False)
        name = json.dumps(f"{text}.tar.gz", ensure_ascii=False).replace("\\u001b", "\x1b")
        sys.stdout.write(re.sub(r'("name": ?)"[^"]*"', lambda found: found[1] + name, reply.stdout))
        sys.exit(reply.returncode)
    stream = {"stdout": sys.stdout, "stderr": sys.stderr}[said["stream"]]
    stream.buffer.write((said.get("text", "{}").replace("{}", text) + "\n").encode() * said.get("times", 1))
    stream.flush()
    if said.get("exit") is not None:
        sys.exit(said["exit"])
    os.execv(real, [real, *arguments])


if __name__ == "__main__":
    main()
