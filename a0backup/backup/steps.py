"""The steps of a backup, each with one name that the engine's pages, the progress and the report show.

    class Phase:
        @step(StepName.RETRIEVE)
        async def retrieve(self) -> Done: ...

The caller that opens a node's session decides how its steps run. The flows run each step as a task
run of the engine.
"""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from a0backup.report import progress

if TYPE_CHECKING:
    from a0backup.backup.session import NodeSession

P = ParamSpec("P")
R = TypeVar("R")


class StepName(StrEnum):
    """The steps of a run on a node, in the order in which they run."""

    LOCK = "lock"
    UPDATE_COMMANDS = "update-commands"
    PING = "ping"
    STATUS = "status"
    RECONCILE = "reconcile"
    HEALTH = "health"
    START = "start"
    AWAIT = "await"
    RETRIEVE = "retrieve"
    VERIFY = "verify"
    INSPECT = "inspect"
    STORE = "store"
    READ_BACK = "read-back"
    COPY = "copy"
    DELETE = "delete"
    CONFIRM_DELETE = "confirm-delete"
    SETTLE = "settle"

    # Steps that put a node into service.
    LOOK = "look"
    SET_AS_BACKUP = "set-as-backup"
    DRILL = "drill"

    # Steps of the engine, around those of a node.
    ENGINE = "engine"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Done:
    """The result of a step: what it did, in one sentence, and whether the work was already done."""

    text: str
    cached: bool = False


class TakeStep(Protocol):
    """Runs one step of a node's run and returns what *work* returns; may call *work* again after a failure."""

    async def __call__(
        self, name: StepName, session: "NodeSession", kind: str, work: Callable[[], Awaitable[R]]
    ) -> R: ...


class Stepping(Protocol):
    """An object with steps: a node's session, or a phase of its backup of one *kind*."""

    @property
    def session(self) -> "NodeSession": ...
    @property
    def kind(self) -> str: ...


S = TypeVar("S", bound=Stepping)


def step(
    name: StepName,
) -> Callable[[Callable[Concatenate[S, P], Awaitable[R]]], Callable[Concatenate[S, P], Awaitable[R]]]:
    """Make a method the step *name*: its progress is reported, and the report of a failure in it names it."""

    def decorate(method: Callable[Concatenate[S, P], Awaitable[R]]) -> Callable[Concatenate[S, P], Awaitable[R]]:
        @functools.wraps(method)
        async def take(subject: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            session, kind = subject.session, subject.kind

            async def work() -> R:
                session.enter(name)
                progress.tell(progress.Step(session.node.name, kind, name))
                result = await method(subject, *args, **kwargs)
                if isinstance(result, Done):
                    progress.tell(progress.Step(session.node.name, kind, name, result.text))
                return result

            return await session.take(name, session, kind, work)

        return take

    return decorate
