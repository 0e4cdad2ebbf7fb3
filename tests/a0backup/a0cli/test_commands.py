"""a0cli runs within bounds: its output, time, child processes, files and environment."""

import asyncio
import base64
import fcntl
import json
import os
import shlex
import signal
import socket
import stat
import sys
import textwrap
import traceback
import tracemalloc
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from a0backup.a0cli.commands import PROXIES, A0cli, listening
from a0backup.a0cli.directory import PrivateDirectory
from a0backup.a0cli.listing import missing_commands
from a0backup.a0cli.printed import Printed
from a0backup.a0cli.process import _running, kill_running
from a0backup.a0cli.replies import quoted, teach
from a0backup.a0cli.status import Absent, Found, InProgress
from a0backup.errors import (
    A0cliMissingError,
    A0cliTimeoutError,
    FleetFileError,
    PasswordError,
    RefusedError,
    RetrieveFailedError,
    UnknownReplyError,
    UnreachableError,
    VaultUnusableError,
)
from a0backup.files import digests
from a0backup.fleet.load import load_fleet
from simulator.fleet import SimulatedFleet
from tests.support.patience import patience
from tests.support.users import as_user, needs_root, open_folder

SECRET = "S3cret 'Pa\"ss/w0rd+&"


@dataclass(frozen=True)
class Settings:
    path: str
    call_timeout: float = 20
    retrieve_timeout: float = 20
    password_style: str = "positional"
    env: Sequence[str] = ()
    replies: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Program:
    """Writes the a0cli that a test needs, and calls it."""

    def __init__(self, room: Path) -> None:
        self.room, self.directory = room, room / "private"
        self.directory.mkdir(0o700)
        self.path = room / "a0cli"

    def does(self, body: str) -> "Program":
        self.path.write_text(f"#!{sys.executable} -IS\nimport json, os, signal, sys, time\n{textwrap.dedent(body)}\n")
        self.path.chmod(0o755)
        return self

    def prints(self, stdout: str, stderr: str = "", exit_code: int = 0) -> "Program":
        return self.does(f"sys.stdout.write({stdout!r}); sys.stderr.write({stderr!r}); sys.exit({exit_code})")

    def a0cli(
        self, *, host: str = "127.0.0.1", port: int = 9, inherit: Sequence[int] = (), **settings: object
    ) -> A0cli:
        made = Settings(**({"path": str(self.path)} | settings))  # type: ignore[arg-type]
        return A0cli(made, node="a0-1", host=host, port=port, directory=self.directory, inherit=inherit)

    def noted(self, name: str) -> str:
        return (self.directory / name).read_text()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    yield Program(tmp_path)
    mine = [each for each in psutil.Process().children(recursive=True) if str(tmp_path) in " ".join(_cmdline(each))]
    assert mine == []


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), process.status()]
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until_written(path: Path) -> str:
    def read() -> str:
        return path.read_text() if path.exists() else ""

    async with asyncio.timeout(patience(10)):
        while not (text := read()):  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.01)
    return text


# A grandchild that ignores SIGTERM and keeps both streams open. Once it does, it writes its pid.
GRANDCHILD = """
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("grandchild.new", "w").write(str(os.getpid())); os.rename("grandchild.new", "grandchild")
        while True: time.sleep(60)
    while not os.path.exists("grandchild"): time.sleep(0.005)
"""


# ---------------------------------------------------------------------------------------------------------------------
# A call


async def test_a_call_passes_an_argument_list_and_runs_in_the_private_directory(program: Program) -> None:
    program.does('print(json.dumps([sys.argv[1:], os.getcwd()])); print("oh", file=sys.stderr); sys.exit(7)')
    told = await program.a0cli(host="a0-1.example", port=10121).call("nslookup", "a; touch x", "$(id)")
    assert json.loads(told.stdout) == [
        ["-t", "a0-1.example", "-p", "10121", "nslookup", "a; touch x", "$(id)"],
        str(program.directory),
    ]
    assert (told.command, told.exit_code, told.stderr) == ("nslookup", 7, "oh\n")
    assert 0 < told.seconds < 20
    assert list(program.directory.iterdir()) == []


async def test_a0cli_alone_lists_its_commands(program: Program) -> None:
    told = await program.does("print(sys.argv[1:])").a0cli().commands()
    assert told.stdout == "[]\n"


async def test_a_call_sees_no_more_than_it_needs(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A0_BACKUP_PASSWORD", SECRET)
    monkeypatch.setenv("TZ", "Europe/Berlin")
    program.does(
        """
        open("made", "w").close()
        facts = [dict(os.environ), sys.stdin.read(), os.getsid(0) == os.getpid(), sorted(os.listdir("/proc/self/fd"))]
        print(json.dumps(facts))
        """
    )
    environment, stdin, leads, descriptors = json.loads((await program.a0cli().call("ping")).stdout)
    assert SECRET not in environment.values()
    assert environment["TZ"] == "Europe/Berlin"
    assert environment["PATH"] == os.environ["PATH"]
    assert stdin == ""
    assert leads
    assert set(descriptors) <= {"0", "1", "2", "3"}  # 3 is the listing itself
    assert stat.S_IMODE((program.directory / "made").stat().st_mode) == 0o600


async def test_a_call_sees_the_variables_that_the_operator_names(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    program.does("print(os.environ.get('HTTPS_PROXY'))")
    assert (await program.a0cli().call("ping")).stdout == "None\n"
    assert (await program.a0cli(env=["HTTPS_PROXY", "NOT_SET"]).call("ping")).stdout == "http://proxy:3128\n"


async def test_an_unreachable_node_names_the_proxies_that_a0cli_was_not_given(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://user:S3cret@proxy:3128")
    program.prints("", "Error: connect ETIMEDOUT 10.0.0.1:10121\n", 1)
    with pytest.raises(UnreachableError) as caught:
        await program.a0cli().ping()
    assert "https_proxy set here and not given to a0cli, see a0cli.env" in str(caught.value)
    assert "S3cret" not in str(caught.value)
    with pytest.raises(UnreachableError) as caught:
        await program.a0cli(env=["https_proxy"]).ping()
    assert "a0cli.env" not in str(caught.value)


async def test_a_call_inherits_the_lock(program: Program, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    program.does(f'open("held", "w").write(os.readlink("/proc/self/fd/{lock}")); time.sleep(60)')
    calling = asyncio.ensure_future(program.a0cli(inherit=[lock]).call("ping"))
    assert await until_written(program.directory / "held") == str(tmp_path / "lock")
    os.close(lock)
    again = os.open(tmp_path / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)


async def test_concurrent_calls_do_not_mix(program: Program) -> None:
    program.does("time.sleep(0.05); print(sys.argv[-1] * 1000)")
    a0cli = program.a0cli()
    words = [f"word{number}" for number in range(8)]
    told = await asyncio.gather(*(a0cli.call("nslookup", word) for word in words))
    assert [each.stdout for each in told] == [word * 1000 + "\n" for word in words]


async def test_a_program_on_path_is_found(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program.does('print("here")')
    monkeypatch.setenv("PATH", f"{program.room}:{os.environ['PATH']}")
    assert (await program.a0cli(path="a0cli").call("ping")).stdout == "here\n"


@needs_root
async def test_a_program_in_a_folder_that_this_user_may_not_enter_is_reported_as_missing(program: Program) -> None:
    with open_folder() as folder:
        (folder / "closed").mkdir(0o700)
        with as_user(12345, 54321), pytest.raises(A0cliMissingError, match="no program"):
            await program.a0cli(path=str(folder / "closed" / "a0cli")).call("ping")


async def test_a_program_that_does_not_exist_or_does_not_start_is_reported_as_missing(program: Program) -> None:
    async def missing(path: str, reason: str) -> None:
        with pytest.raises(A0cliMissingError, match=reason) as caught:
            await program.a0cli(path=path).call("ping")
        assert "a0cli.path" in caught.value.hint()

    await missing("a0cli-that-nobody-has", "no program a0cli-that-nobody-has on PATH")
    await missing("/nowhere/a0cli", "no program /nowhere/a0cli")
    program.path.write_text("no shebang")
    program.path.chmod(0o644)
    await missing(str(program.path), "is not executable")
    program.path.chmod(0o755)
    await missing(str(program.path), "Exec format error")
    program.path.write_text("#!/nowhere/node\n")
    await missing(str(program.path), "No such file")


async def test_a_missing_private_directory_is_named(program: Program) -> None:
    a0cli = program.prints("x").a0cli()
    program.directory.rmdir()
    with pytest.raises(A0cliMissingError, match="private directory"):
        await a0cli.call("ping")


@pytest.mark.parametrize("argument", ["-x", "--force", "-", "", "a\0b", "\ud800"])
async def test_an_argument_like_an_option_starts_nothing(program: Program, argument: str) -> None:
    a0cli = program.does('open("ran", "w")').a0cli()
    with pytest.raises(ValueError, match="starts with '-'"):
        await a0cli.call("set-as-backup", argument)
    with pytest.raises(FleetFileError):
        await a0cli.call(argument)
    with pytest.raises(PasswordError):
        await a0cli.start("backup", argument)
    with pytest.raises(FleetFileError):
        await a0cli.start("user-export", SECRET, argument)
    with pytest.raises(FleetFileError, match="host of node a0-1"):
        program.a0cli(host=argument)
    assert list(program.directory.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Output


async def test_200_mb_of_output_is_drained_in_constant_memory(program: Program) -> None:
    program.does(
        """
        for stream in (sys.stdout.buffer, sys.stderr.buffer):
            stream.write(b"first")
            for _ in range(1600): stream.write(b"x" * 65536)
            stream.write(b"last")
        """
    )
    tracemalloc.start()
    try:
        told = await program.a0cli().call("ping")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    for text in (told.stdout, told.stderr):
        assert text.startswith("firstx")
        assert text.endswith("xlast")
        assert f"[{1600 * 65536 + 9 - 65536} bytes left out]" in text
        assert len(text) < 66_000
    assert peak < 4_000_000


@pytest.mark.parametrize("size", [0, 1, 32767, 32768, 32769, 65535, 65536])
async def test_output_that_fits_is_kept_whole(program: Program, size: int) -> None:
    program.does(f'sys.stdout.write("abcdefg"[:{size}] * ({size} // 7) + "z" * ({size} % 7))')
    assert len((await program.a0cli().call("ping")).stdout) == (size if size > 6 else size % 7)


async def test_output_that_is_not_text_is_accepted(program: Program) -> None:
    program.does('sys.stdout.buffer.write(b"\\xff\\x00\\xc3")')
    assert (await program.a0cli().call("ping")).stdout == "\ufffd\x00\ufffd"


async def test_a_grandchild_that_keeps_the_streams_does_not_hang_the_call(program: Program) -> None:
    program.does(GRANDCHILD + '    print("done", flush=True)\n    os._exit(0)')
    told = await program.a0cli().call("ping")
    assert told.stdout == "done\n"
    assert told.seconds < 4
    assert not alive(int(program.noted("grandchild")))


async def test_a_grandchild_in_its_own_session_does_not_hang_the_call(program: Program) -> None:
    program.does(
        """
        if os.fork() == 0:
            os.setsid(); open("daemon.new", "w").write(str(os.getpid())); os.rename("daemon.new", "daemon")
            while True: time.sleep(60)
        while not os.path.exists("daemon"): time.sleep(0.005)
        print("done", flush=True)
        os._exit(0)
        """
    )
    try:
        told = await program.a0cli().call("ping")
        assert told.stdout == "done\n"
        assert told.seconds < 4
    finally:
        os.kill(int(program.noted("daemon")), signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------------------------
# The end of a call


async def test_the_whole_process_group_is_gone_after_the_deadline(program: Program) -> None:
    program.does(GRANDCHILD + '    print("still at it", flush=True)\n    time.sleep(60)')
    with pytest.raises(A0cliTimeoutError, match=r"ping: no end within 0\.8 s \(waited for 127.0.0.1:9\)") as caught:
        await program.a0cli().call("ping", deadline=0.8)
    assert caught.value.transient
    assert caught.value.tail == "still at it"
    assert not alive(int(program.noted("grandchild")))


async def test_a_process_group_gets_the_chance_to_exit_by_itself(program: Program) -> None:
    program.does(
        """
        def end(*_): open("tidied", "w").close(); sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    with pytest.raises(A0cliTimeoutError):
        await program.a0cli().call("ping", deadline=0.5)
    assert (program.directory / "tidied").exists()


async def test_each_command_has_the_deadline_of_its_setting(program: Program) -> None:
    a0cli = program.does("time.sleep(60)").a0cli(call_timeout=0.2, retrieve_timeout=0.4)
    with pytest.raises(A0cliTimeoutError, match=r"within 0\.2 s"):
        await a0cli.delete("backup")
    with pytest.raises(A0cliTimeoutError, match=r"backup-sensitive-retrieve: no end within 0\.4 s"):
        await a0cli.retrieve("backup-sensitive")


async def test_the_whole_process_group_is_gone_after_a_cancellation(program: Program) -> None:
    program.does(GRANDCHILD + "    time.sleep(60)")
    calling = asyncio.ensure_future(program.a0cli().call("ping"))
    grandchild = int(await until_written(program.directory / "grandchild"))
    calling.cancel()
    await asyncio.wait({calling}, timeout=0.05)
    calling.cancel()  # as impatient cancel scopes do
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert not alive(grandchild)


async def test_a_cancellation_right_at_the_start_leaves_no_process(program: Program) -> None:
    program.does("time.sleep(60)")
    for turns in range(12):
        calling = asyncio.ensure_future(program.a0cli().call("ping"))
        for _ in range(turns):
            await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert not [each for each in psutil.Process().children() if str(program.path) in " ".join(_cmdline(each))]


async def test_a_time_limit_around_a_call_holds(program: Program) -> None:
    a0cli = program.does("time.sleep(60)").a0cli()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await a0cli.call("ping")


def test_a_closed_event_loop_leaves_no_process(program: Program) -> None:
    program.does(GRANDCHILD + "    time.sleep(60)")

    async def leave() -> int:
        background = asyncio.ensure_future(program.a0cli().call("ping"))
        grandchild = int(await until_written(program.directory / "grandchild"))
        assert not background.done()
        return grandchild

    assert not alive(asyncio.run(leave()))


async def test_no_zombie_and_no_descriptor_is_left(program: Program) -> None:
    a0cli = program.prints("x").a0cli()
    await a0cli.call("ping")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    await asyncio.gather(*(a0cli.call("ping") for _ in range(10)))
    program.path.write_text("no shebang")
    with pytest.raises(A0cliMissingError):
        await a0cli.call("ping")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - a count
    assert not [each for each in psutil.Process().children() if each.status() == psutil.STATUS_ZOMBIE]


async def test_all_running_calls_can_be_killed_at_once(program: Program) -> None:
    program.does('signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[-1], "w").write("x"); time.sleep(60)')
    a0cli = program.a0cli()
    calling = [asyncio.ensure_future(a0cli.call("nslookup", name)) for name in ("one", "two")]
    for name in ("one", "two"):
        await until_written(program.directory / name)
    # A program may write before the event loop knows that it has started.
    while len(_running) < 2:  # noqa: ASYNC110 - no event to wait for
        await asyncio.sleep(0)
    kill_running()
    assert [told.exit_code for told in await asyncio.gather(*calling)] == [-signal.SIGKILL] * 2
    kill_running()


# ---------------------------------------------------------------------------------------------------------------------
# The secret

ECHO = """
    import base64, urllib.parse
    secret = sys.argv[-1]
    forms = [secret, json.dumps(sys.argv), urllib.parse.quote(secret), urllib.parse.quote_plus(secret), repr(secret),
             base64.b64encode(secret.encode()).decode(), base64.b64encode(b"pw=" + secret.encode()).decode(),
             secret.encode().hex()]
    for form in forms: print(form); print(form, file=sys.stderr)
    sys.stdout.flush(); sys.stderr.flush()
"""


def assert_not_told(text: str) -> None:
    forms = [SECRET, json.dumps(SECRET)[1:-1], urllib.parse.quote(SECRET), urllib.parse.quote_plus(SECRET)]
    forms += [base64.b64encode(SECRET.encode()).decode()[:-4], SECRET.encode().hex(), shlex.quote(SECRET)]
    for form in forms:
        assert form not in text


@pytest.mark.parametrize("style", ["positional", "option"])
async def test_the_password_is_passed_in_the_configured_style_and_redacted_from_the_output(
    program: Program, style: str
) -> None:
    program.does('open("argv", "w").write(json.dumps(sys.argv[5:]))\n' + textwrap.dedent(ECHO))
    told = await program.a0cli(password_style=style).start("backup", SECRET)
    wanted = ["backup", SECRET] if style == "positional" else ["backup", "--password", SECRET]
    assert json.loads(program.noted("argv")) == wanted
    assert told.stdout.count("***") >= 8
    assert_not_told(repr(told))
    assert_not_told(told.stdout + told.stderr)


@pytest.mark.parametrize("style", ["positional", "option"])
async def test_other_arguments_of_a_start_follow_the_password(program: Program, style: str) -> None:
    program.does("print(json.dumps(sys.argv[5:]))")
    told = await program.a0cli(password_style=style).start("user-export", SECRET, "_id,email")
    password = ["***"] if style == "positional" else ["--password", "***"]
    assert json.loads(told.stdout) == ["user-export", *password, "_id,email"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path_factory.mktemp("fleet"), 2, size=5000, backup_seconds=0.05) as fleet:
        yield fleet


@pytest.mark.parametrize("style", ["positional", "option"])
async def test_all_kinds_are_started_shown_retrieved_and_deleted(
    simulated: SimulatedFleet, style: str, tmp_path: Path
) -> None:
    kinds = ["backup", "backup-sensitive", {"user-export": ["_id", "email", "__tenant"]}]
    settings = {"call_timeout": "20s", "password_style": style}
    fleet = load_fleet(simulated.fleet_yaml(tmp_path / "fleet.yaml", kinds=kinds, a0cli=settings))
    node = fleet.nodes[style == "option"]
    directory = PrivateDirectory(tmp_path, "work", node=node.name)
    directory.make(fleet.a0cli.key_dir)
    a0cli = A0cli(fleet.a0cli, node=node.name, host=node.host, port=node.port, directory=directory.path)
    await a0cli.update_commands()
    assert missing_commands((await a0cli.commands()).stdout, fleet.kinds) == []
    for kind in fleet.kinds_of(node):
        assert await a0cli.status(kind) == Absent()
        assert (await a0cli.start(kind, "Passw0rd", *fleet.arguments(kind))).exit_code == 0
        async with asyncio.timeout(patience(20)):
            while not isinstance(status := await a0cli.status(kind), Found):
                assert status == InProgress()
        directory.clear_retrieved()
        assert (await a0cli.retrieve(kind)).exit_code == 0
        held = simulated.holds(node.name, kind)
        assert held is not None
        assert digests(directory.retrieved(kind)).md5 == held["md5"] == status.md5
        assert (await a0cli.delete(kind)).exit_code == 0
        assert await a0cli.status(kind) == Absent()
    passwords = {call["password"] for kind in fleet.kinds for call in simulated.calls(node.name, kind)}
    assert len(passwords) == 1
    [export] = simulated.calls(node.name, "user-export")
    assert export["args"][-1] == "_id,email,__tenant"


async def test_no_error_contains_a_password(program: Program, port: int) -> None:
    a0cli = program.does(ECHO + "    time.sleep(60)").a0cli(call_timeout=0.5, port=port)
    with pytest.raises(A0cliTimeoutError) as timeout:
        await a0cli.start("backup", SECRET)
    program.does(ECHO + "    sys.exit(1)")
    echoing = program.a0cli(port=port)
    await echoing.start("backup", SECRET)
    with pytest.raises(UnknownReplyError) as failed:
        await echoing.status("backup")
    program.path.write_text("no shebang")
    with pytest.raises(A0cliMissingError) as missing:
        await a0cli.start("backup", SECRET)
    for error in (timeout.value, failed.value, missing.value):
        assert_not_told("".join(traceback.format_exception(error)))
        assert_not_told(repr(error))


async def test_a_password_cut_in_two_is_redacted(program: Program) -> None:
    half = len(SECRET) // 2
    program.does(
        f"""
        before = "x" * (32768 - {half})
        sys.stdout.write(before + sys.argv[-1] + "y" * 100000 + sys.argv[-1] + "z" * (32768 - {half}))
        """
    )
    told = await program.a0cli().start("backup", SECRET)
    assert SECRET[:4] not in told.stdout
    assert SECRET[-4:] not in told.stdout


@pytest.mark.parametrize("split", ["\\b", "\\u0000", "\\u200b", "\\ufe0f", "\\u001b[31m", "\\n", "", "\\u0065\\u0301"])
async def test_no_text_of_a_decoded_reply_contains_the_password(program: Program, port: int, split: str) -> None:
    split_password = f"Xk3-Se{split}cret-Pass-9"
    secret = "Xk3-Secret-Pass-9" if "u0301" not in split else "Xk3-Se\N{LATIN SMALL LETTER E WITH ACUTE}cret-Pass-9"
    a0cli = program.prints(
        f'{{"message":"Backup found","arguments":{{"name":"{split_password}.tar.gz","md5":"{"a" * 32}"}}}}'
    ).a0cli(port=port)
    a0cli.know(secret)
    assert await a0cli.status("backup") == Found("***.tar.gz", "a" * 32)
    program.prints(f'{{"message":"Backup found","arguments":{{"name":"x","md5":"{split_password}"}}}}')
    found = await a0cli.status("backup")
    assert isinstance(found, Found)
    assert found.shown == "md5 '***'"
    program.prints(f'{{"message":"It is {split_password}"}}')
    lesson = teach(await a0cli.call("backup-status"), a0cli.wordings)
    assert "cret" not in lesson
    assert "It is ***" in lesson
    program.prints(f'{{"message":"It is {split_password}"}}', exit_code=1)
    with pytest.raises(UnknownReplyError) as failed:
        await a0cli.status("backup")
    assert "cret" not in str(failed.value)


@pytest.mark.parametrize(
    ("between", "before"), [("", ""), ("\\n\\x1b[0m", ""), ("", "x" * 100_000), ("\\\\u200b", "y")]
)
async def test_a_password_whose_halves_are_on_both_streams_is_shown_in_no_message(
    program: Program, port: int, between: str, before: str
) -> None:
    program.does(
        f"""
        sys.stdout.write({before!r} + "told: Xk3-Se{between}")
        sys.stderr.write("cret-Pass-9 is wrong")
        sys.exit(1)
        """
    )
    a0cli = program.a0cli(port=port)
    a0cli.know("Xk3-Secret-Pass-9")
    told = await a0cli.call("backup-retrieve")
    assert told.stdout.endswith("told: ***")
    assert told.stderr == "*** is wrong"
    assert quoted(told).endswith("told: *** *** is wrong (exit code 1)")
    with pytest.raises(UnknownReplyError) as failed:
        await a0cli.status("backup")
    assert "Xk3" not in str(failed.value)
    program.does(
        'print("Xk3-Se", end="", flush=True); print("cret-Pass-9", end="", file=sys.stderr, flush=True); time.sleep(60)'
    )
    slow = program.a0cli(port=port, call_timeout=0.5)
    slow.know("Xk3-Secret-Pass-9")
    with pytest.raises(A0cliTimeoutError) as timeout:
        await slow.call("backup-retrieve")
    assert timeout.value.tail == "*** ***"


# ---------------------------------------------------------------------------------------------------------------------
# Requests


async def test_a_status_is_read(program: Program) -> None:
    a0cli = program.prints('{"message":"Backup found","arguments":{"name":"x","md5":"%s"}}' % ("A" * 32)).a0cli()
    assert await a0cli.status("backup") == Found("x", "a" * 32)
    program.prints("No backup found")
    assert await a0cli.status("backup-sensitive") == Absent()
    program.prints("", "\x1b[32mBackup in progress\x1b[0m")
    assert await a0cli.status("backup") == InProgress()
    program.prints("Nix da")
    assert await program.a0cli(replies={"absent": ["nix da"]}).status("backup") == Absent()


async def test_a_name_that_no_file_of_the_vault_can_take_is_no_status(program: Program, port: int) -> None:
    def named(name: str) -> A0cli:
        reply = {"message": "Backup found", "arguments": {"name": name, "md5": "a" * 32}}
        return program.prints(json.dumps(reply)).a0cli(port=port)

    longest = "\N{GRINNING FACE}" * 1000
    assert await named(longest).status("backup") == Found(longest, "a" * 32)
    with pytest.raises(UnknownReplyError) as refused:
        await named("n" * 20_000).status("backup")
    assert "the name of the backup has 20,000 characters, more than 1,000" in str(refused.value)
    assert len(str(refused.value)) < 1000


async def test_a_ping_is_read(program: Program, port: int) -> None:
    await program.prints('{"message": "PONG"}').a0cli().ping()
    with pytest.raises(UnknownReplyError):
        await program.prints("gnop").a0cli(port=port).ping()


async def test_updated_commands_are_returned_unless_refused(program: Program, port: int) -> None:
    assert (await program.prints("12 commands").a0cli(port=port).update_commands()).stdout == "12 commands"
    with pytest.raises(RefusedError):
        await program.prints("Unauthorized").a0cli(port=port).update_commands()
    with pytest.raises(RefusedError):
        await program.prints("", "no key", 1).a0cli(port=port).update_commands()
    with pytest.raises(UnknownReplyError):
        await program.prints("", "hm", 1).a0cli(port=port).update_commands()


async def test_a_call_that_fails_while_the_port_is_closed_means_unreachable(program: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    a0cli = program.prints("Verbindung abgelehnt", exit_code=1).a0cli(port=closed)
    for asked in (a0cli.ping, a0cli.update_commands, lambda: a0cli.status("backup")):
        with pytest.raises(UnreachableError, match=f"127.0.0.1:{closed} takes no connection") as caught:
            await asked()
        assert caught.value.tail == "Verbindung abgelehnt"
    program.does("time.sleep(60)")
    with pytest.raises(UnreachableError):
        await program.a0cli(port=closed, call_timeout=0.3).ping()


async def test_a_call_that_hangs_while_the_port_is_open_is_a_timeout(program: Program, port: int) -> None:
    with pytest.raises(A0cliTimeoutError):
        await program.does("time.sleep(60)").a0cli(port=port, call_timeout=0.3).ping()


async def test_a_permanent_refusal_is_not_mistaken_for_an_unreachable_node(program: Program) -> None:
    with pytest.raises(RefusedError):
        await program.prints("Unknown command", exit_code=1).a0cli().status("backup")


async def test_a_port_is_probed(port: int) -> None:
    assert await listening("127.0.0.1", port)
    assert not await listening("127.0.0.1", 9)
    assert not await listening("no-such-host.invalid", port)
    assert not await listening("x" * 70 + ".example", port)


# ---------------------------------------------------------------------------------------------------------------------
# The private directory


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "id_rsa").write_text("private")
    (tmp_path / "keys" / "id_rsa.pub").write_text("public")
    return tmp_path / "keys"


def make(tmp_path: Path, keys: Path, name: str = "run-1", *, node: str = "a0-1") -> PrivateDirectory:
    directory = PrivateDirectory(tmp_path / "vault" / node, name, node=node)
    directory.make(keys)
    return directory


def test_a_private_directory_holds_the_keys_as_links_to_copies_that_go_with_it(tmp_path: Path, keys: Path) -> None:
    (keys / "backup-retrieve.tar.gz.enc").write_text("old")
    (keys / "folder").mkdir()
    before = os.umask(0o777)
    try:
        made = make(tmp_path, keys)
    finally:
        os.umask(before)
    assert made.path == tmp_path / "vault" / "a0-1" / "run-1"
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.path.parent.stat().st_mode) == 0o700
    assert {path.name: path.read_text() for path in made.path.iterdir()} == {
        "id_rsa": "private",
        "id_rsa.pub": "public",
    }
    copies = [path.readlink() for path in made.path.iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in copies} == {0o600}
    [place] = {path.parent for path in copies}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    made.remove()
    assert not made.path.exists()
    assert not place.exists()
    assert (keys / "id_rsa").read_text() == "private"
    made.remove()


def test_keys_that_are_symlinks_are_linked(tmp_path: Path, keys: Path) -> None:
    (keys / "..2026").mkdir()
    (keys / "id_rsa").rename(keys / "..2026" / "id_rsa")
    (keys / "..data").symlink_to("..2026")
    (keys / "id_rsa").symlink_to("..data/id_rsa")
    made = make(tmp_path, keys)
    assert (made.path / "id_rsa").read_text() == "private"
    assert {path.name for path in made.path.iterdir()} == {"id_rsa", "id_rsa.pub"}


def test_what_a_call_writes_reaches_neither_the_key_folder_nor_another_node(tmp_path: Path, keys: Path) -> None:
    (keys / "commands.json").write_text("[]")
    one, other = make(tmp_path, keys), make(tmp_path, keys, node="b")
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    for path in one.path.iterdir():
        path.write_text("written by a call")
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before
    assert {path.name: path.read_bytes() for path in other.path.iterdir()} == before


def test_copies_of_keys_that_a_killed_run_left_are_removed_by_the_next(tmp_path: Path, keys: Path) -> None:
    left = (make(tmp_path, keys, "run-1").path / "id_rsa").readlink()
    now = (make(tmp_path, keys, "run-2").path / "id_rsa").readlink()
    assert now.exists()
    assert not left.parent.exists()


def test_files_of_a_killed_run_are_not_reused(tmp_path: Path, keys: Path) -> None:
    (make(tmp_path, keys).path / "backup-retrieve.tar.gz.enc").write_text("old")
    assert not (make(tmp_path, keys).path / "backup-retrieve.tar.gz.enc").exists()


def test_missing_keys_are_an_error(tmp_path: Path, keys: Path) -> None:
    for path in keys.iterdir():
        path.unlink()
    with pytest.raises(A0cliMissingError, match="holds no file"):
        make(tmp_path, keys)
    keys.rmdir()
    with pytest.raises(A0cliMissingError, match="No such file"):
        make(tmp_path, keys)
    keys.write_text("x")
    with pytest.raises(A0cliMissingError, match="Not a directory"):
        make(tmp_path, keys)
    assert not (tmp_path / "vault").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_key_is_an_error(tmp_path: Path, keys: Path) -> None:
    (keys / "id_rsa").chmod(0)
    with pytest.raises(A0cliMissingError, match="id_rsa cannot be read"):
        make(tmp_path, keys)


def test_a_vault_where_no_directory_can_be_created_is_unusable(tmp_path: Path, keys: Path) -> None:
    (tmp_path / "vault").write_text("a file")
    with pytest.raises(VaultUnusableError):
        make(tmp_path, keys)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b"])
def test_a_name_with_path_parts_creates_nothing(tmp_path: Path, keys: Path, name: str) -> None:
    with pytest.raises(VaultUnusableError):
        make(tmp_path, keys, name)
    assert not (tmp_path / "vault").exists()


@pytest.mark.parametrize("name", ["backup-retrieve.tar.gz.enc", "backup.tar.gz.enc", "new\nline.tar.gz.enc"])
def test_the_one_retrieved_file_is_found_and_made_private(tmp_path: Path, keys: Path, name: str) -> None:
    made = make(tmp_path, keys)
    (made.path / name).write_text("x")
    (made.path / name).chmod(0o666)
    (made.path / "commands.json").write_text("[]")
    assert made.retrieved() == made.path / name
    assert stat.S_IMODE((made.path / name).stat().st_mode) == 0o600


def test_anything_but_one_regular_file_is_a_failed_retrieval(tmp_path: Path, keys: Path) -> None:
    made = make(tmp_path, keys)
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "elsewhere").chmod(0o644)
    one, other = made.path / "one.tar.gz.enc", made.path / "other.tar.gz.enc"

    def refused(reason: str) -> None:
        with pytest.raises(RetrieveFailedError, match=reason) as caught:
            made.retrieved("backup-sensitive")
        assert (caught.value.node, caught.value.kind) == ("a0-1", "backup-sensitive")
        made.clear_retrieved()
        assert {path.name for path in made.path.iterdir()} == {"id_rsa", "id_rsa.pub"}

    refused("no .* file")
    one.write_text("x")
    other.write_text("x")
    refused("2 .* files")
    one.symlink_to(tmp_path / "elsewhere")
    refused("not a regular file")
    one.symlink_to(tmp_path / "nowhere")
    refused("not a regular file")
    one.mkdir()
    (one / "inner").write_text("x")
    refused("not a regular file")
    os.mkfifo(one)
    refused("not a regular file")
    assert (tmp_path / "elsewhere").read_text() == "x"
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o644


def test_printed_output_can_be_compared() -> None:
    assert Printed("ping", 0, "a", "b", 0.5) == Printed("ping", 0, "a", "b", 0.5)
