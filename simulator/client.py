"""The stand-in a0cli: `python -m simulator serve` compiles it once, into the self-contained file DIR/bin/a0cli.

Commands and options are those of the vendor's page on the CLI. The node alone decides what a remote
command prints and how it exits, so every fault in wording is ordered there.
"""

# Tests make hundreds of thousands of calls, and importing pathlib, json, socket and signal takes longer than starting
# an interpreter. The C modules below them suffice.
# ruff: noqa: PTH108, PTH109, PTH110, PTH119, PTH123
import _json
import _signal  # type: ignore[import-not-found]
import _socket
import os
import sys

TYPE_CHECKING = False  # in place of typing's, for the same reason
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

LOCAL = {
    "create-key": "create a key pair on the current path",
    "show-key": "show the public key on the current path",
    "delete-key": "delete the key pair on the current path",
    "update-commands": "ask the node which commands it takes",
}
KEY, PUBLIC_KEY, COMMANDS = "a0cli-key", "a0cli-key.pub", "a0cli-commands.json"
VERSION = "1.6.0-simulator"
CHUNK = 1 << 18


class PlainJson:
    """What the scanner of `_json` expects from its caller: json.loads without options."""

    strict, parse_float, parse_int, parse_constant = True, float, int, float
    object_hook = object_pairs_hook = array_hook = None


scan = _json.make_scanner(PlainJson)  # type: ignore[arg-type]
encode = _json.make_encoder(None, str, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True)


def from_json(text: str) -> "Any":
    return scan(text, 0)[0]


def to_json(value: object) -> str:
    return "".join(encode(value, 0))


def usage(remote: dict[str, str]) -> str:
    lines = [f"    {name:<46}{meaning}" for name, meaning in {**LOCAL, **remote}.items()]
    return "\n".join(
        [
            "",
            "  Usage: a0cli [options] <command>",
            "",
            "  Commands:",
            "",
            *lines,
            "",
            "  Options:",
            "",
            "    -h, --help                  output usage information",
            "    -V, --version               output the version number",
            "    -t, --target <host or ip>   the node",
            "    -p, --port <port>           the port of the node's CLI server (default 10121)",
            "",
            "",
        ]
    )


def refuse(message: str) -> int:
    sys.stderr.write(f"\n  error: {message}\n\n")
    return 1


def known_remote() -> dict[str, str]:
    """Return the commands that update-commands saved here; none without a key pair beside them."""
    if not (os.path.exists(KEY) and os.path.exists(PUBLIC_KEY) and os.path.exists(COMMANDS)):
        return {}
    with open(COMMANDS, encoding="utf-8") as listing:
        commands: dict[str, str] = from_json(listing.read())
    return commands


def create_key() -> int:
    import binascii  # needed by this command alone

    if os.path.exists(KEY):
        return refuse("a key exists on the current path")
    # The nodes compare fingerprints and never compute with the key, so any odd number will do as modulus.
    modulus = b"\0\xc0" + os.urandom(254) + b"\x01"
    fields = (b"ssh-rsa", b"\x01\x00\x01", modulus)
    public = (
        "ssh-rsa "
        + binascii.b2a_base64(b"".join(len(f).to_bytes(4, "big") + f for f in fields), newline=False).decode()
    )
    private = "".join(binascii.b2a_base64(os.urandom(48)).decode() for _ in range(25))
    for name, text in (
        (KEY, f"-----BEGIN SIMULATED PRIVATE KEY-----\n{private}-----END SIMULATED PRIVATE KEY-----\n"),
        (PUBLIC_KEY, public + "\n"),
    ):
        with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as key:
            key.write(text)
    print(public)
    return 0


def local(command: str) -> int:
    if command == "create-key":
        return create_key()
    if not os.path.exists(PUBLIC_KEY):
        return refuse("no key on the current path")
    if command == "show-key":
        with open(PUBLIC_KEY) as key:
            sys.stdout.write(key.read())
    else:
        for name in (KEY, PUBLIC_KEY, COMMANDS):
            if os.path.lexists(name):
                os.unlink(name)
    return 0


def receive(connection: _socket.socket, name: str, size: int) -> bool:
    """Write *size* bytes to *name* on the current path; if fewer arrive, keep them and return False."""
    with open(os.path.basename(name), "wb") as file:
        while size > 0 and (piece := connection.recv(min(CHUNK, size))):
            file.write(piece)
            size -= len(piece)
    return size == 0


def lines_of(connection: _socket.socket) -> "Iterator[bytes]":
    """Yield the node's lines without reading past one: the bytes of a file may follow it."""
    line = bytearray()
    while piece := connection.recv(1 << 16, _socket.MSG_PEEK):
        end = piece.find(b"\n") + 1
        line += connection.recv(end or len(piece))
        if end:
            yield bytes(line)
            line.clear()


def remote(host: str, port: int, command: str, args: list[str]) -> int:
    with open(PUBLIC_KEY) as key:
        public_key = key.read()
    request = {
        "command": command,
        "args": args,
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "cwd": os.getcwd(),
        "key": public_key,
    }
    connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        connection.connect((host, port))
        connection.sendall(to_json(request).encode() + b"\n")
        for line in lines_of(connection):
            reply = from_json(line.decode())
            if reply.get("ignore_sigterm"):
                _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)
            if "commands" in reply:
                with open(COMMANDS, "w", encoding="utf-8") as listing:
                    listing.write(to_json(reply["commands"]))
            if "file" in reply:
                if not receive(connection, reply["file"], reply["size"]):
                    break
                # The node counts a transfer as done once the file is written here, not once it has left the node.
                connection.sendall(b"\n")
            if "exit" in reply:
                for stream, text in ((sys.stdout, reply["out"]), (sys.stderr, reply["err"])):
                    stream.buffer.write(text.encode("utf-8", "surrogateescape"))
                    stream.flush()
                return int(reply["exit"])
        sys.stderr.write("Error: socket hang up\n")
    except ConnectionRefusedError:
        sys.stderr.write(f"Error: connect ECONNREFUSED {host}:{port}\n")
    except (ConnectionError, BrokenPipeError):
        sys.stderr.write("Error: read ECONNRESET\n")
    except OSError as error:
        sys.stderr.write(f"Error: {error}\n")
    finally:
        connection.close()
    return 1


def main(argv: list[str]) -> int:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    os.umask(0o077)
    host, port, words = "", "10121", list[str]()
    rest = iter(argv)
    for word in rest:
        if word in ("-t", "--target"):
            host = next(rest, "")
        elif word in ("-p", "--port"):
            port = next(rest, "")
        elif word == "--password" and words:
            words += [word, next(rest, "")]
        elif word in ("-V", "--version"):
            print(VERSION)
            return 0
        elif word in ("-h", "--help"):
            words.clear()
            break
        elif word.startswith("-") and not words:
            return refuse(f"unknown option `{word}'")
        else:
            words.append(word)
    if not words:
        sys.stdout.write(usage(known_remote()))
        return 0
    return obey(host, port, words[0], words[1:])


def obey(host: str, port: str, command: str, args: list[str]) -> int:
    """Run *command*, on this machine or at the node; return the exit code."""
    if command in LOCAL and command != "update-commands":
        return local(command)
    if command == "update-commands":
        if not (os.path.exists(KEY) and os.path.exists(PUBLIC_KEY)):
            return refuse("no key on the current path, run create-key first")
    elif command not in {usage_line.split()[0] for usage_line in known_remote()}:
        return refuse(f"unknown command `{command}'")
    if not host:
        return refuse("option `-t, --target <host or ip>' is required")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        return refuse(f"`{port}' is not a port")
    return remote(host, int(port), command, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
