"""What is on the nodes and in the vault before a run is struck, and what an undisturbed run does."""

from collections.abc import Callable

from tests.system.faults.disk import Operation
from tests.system.faults.trial import Arena, Trial

SIGKILLED = -9


def plain(trial: Trial) -> None:
    """Nothing is on the nodes, and nothing in the vault."""


def foreign(trial: Trial) -> None:
    """Somebody else's backup is on each node."""
    for node in trial.nodes:
        trial.appliances.put(node, password="their own")


def interrupted(trial: Trial) -> None:
    """An earlier run was killed when its bytes were in the vault without their manifest."""
    trial.disk.kill_at(next(o.ordinal for o in reference(trial.arena, plain) if "manifest.json" in o.to))
    assert trial.run()[0] == SIGKILLED
    trial.disk.calm()


def unreadable(trial: Trial) -> None:
    """An earlier run was killed after its start, and its journal has been torn since."""
    trial.appliances.tell(trial.node, "backup", "kill_parent", when="after", times=1)
    assert trial.run()[0] == SIGKILLED
    [journal] = trial.journals()
    journal.write_bytes(journal.read_bytes()[:100])
    trial.disk.start_anew()


def mismatching(trial: Trial) -> None:
    """The first retrieval is corrupted on its way, and an earlier one is in quarantine."""
    for node in trial.nodes:
        trial.appliances.tell(node, "backup-retrieve", "flip", times=3)
    assert trial.run()[0] == 1
    for node in trial.nodes:
        trial.appliances.tell(node, "backup-retrieve", "flip", times=1)


def sealed(trial: Trial) -> None:
    """Each backup has its own password, which only the run that started it knows."""
    trial.seal()


Scenario = Callable[[Trial], None]


UNFINISHED = (interrupted, mismatching)  # leave a backup of ours that the struck run must finish


_references: dict[tuple[int, Scenario, int, type[Trial]], list[Operation]] = {}


def reference(arena: Arena, scenario: Scenario, nodes: int = 1, *, kind: type[Trial] = Trial) -> list[Operation]:
    """Return everything that an undisturbed run does on its disk in this scenario."""
    key = (id(arena), scenario, nodes, kind)
    if key not in _references:
        trial = kind(arena, nodes)
        scenario(trial)
        begun = len(trial.disk.operations())
        code, printed = trial.run()
        wrong = [*trial.broken(), *trial.unsettled()]
        assert (code, wrong) == (0, []), f"{wrong}\n{printed}"
        _references[key] = trial.disk.operations()[begun:]
    return _references[key]


def calls_of(arena: Arena, scenario: Scenario) -> list[str]:
    """Return the commands of an undisturbed run, in order."""
    trial = Trial(arena)
    scenario(trial)
    begun = len(trial.appliances.calls(trial.node))
    assert trial.run()[0] == 0
    return [call["command"] for call in trial.appliances.calls(trial.node)][begun:]


def after(trial: Trial, code: int, printed: str) -> list[str]:
    """Return what is wrong after a run that met a fault, and after the undisturbed one that follows."""
    unclear = []
    if code not in (0, 1, 3):
        unclear.append(f"it ended with {code}: {printed}")
    if "Traceback" in printed:
        unclear.append(f"a traceback was printed: {printed}")
    if code != 0 and "HINT: " not in printed:
        unclear.append(f"no error says what to do: {printed}")
    unclear += [f"a process was left: {words}" for words in trial.processes()]
    return unclear + trial.broken() + trial.finish()
