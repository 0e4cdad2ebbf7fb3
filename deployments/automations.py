"""The automations that the engine must hold: zombie runs are ended, failed and late ones are told of."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

POOL = "appliance"


TELL_OF_FAILED = "a0backup: tell of failed runs"


# Of each run a person waits for; a node's run that the night started is told of by the night.
WATCHED_TAG = "a0backup"


NODE_TAG = "a0backup-node"


# Prefect's default is a heartbeat in 180 s: one that was missed, while a server restarts, is no death.
ZOMBIE_AFTER = timedelta(seconds=3 * 180)


_ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")


@dataclass(frozen=True)
class Notify:
    """The operator's notification block, as the address SLUG/NAME and the id of its document."""

    address: str
    document: UUID


def automations(notify: Notify | None) -> list[AutomationCore]:
    """Return the automations: a run whose process died is ended; with *notify*, failed and late ones are told of."""
    ours = {"prefect.resource.role": "tag", "prefect.resource.id": [f"prefect.tag.{WATCHED_TAG}"]}
    with_nodes = {**ours, "prefect.resource.id": [f"prefect.tag.{WATCHED_TAG}", f"prefect.tag.{NODE_TAG}"]}
    runs = {"prefect.resource.id": "prefect.flow-run.*"}
    ended = {f"prefect.flow-run.{name}" for name in _ENDS}
    cores = [
        AutomationCore(
            name="a0backup: end zombie runs",
            description=(
                f"A run that gives no sign for {ZOMBIE_AFTER.seconds} s, because its machine or worker died, is marked"
                " Crashed. The next run goes on where it was."
            ),
            trigger=EventTrigger(
                posture=Posture.Proactive,
                match=runs,  # type: ignore[arg-type]  # a dict is what Prefect's own examples give
                match_related=with_nodes,  # type: ignore[arg-type]
                # A run may die before its first heartbeat, which comes with Running: the time runs from when a worker
                # takes it up.
                after={"prefect.flow-run.Pending", "prefect.flow-run.Running", "prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat"} | ended,
                for_each={"prefect.resource.id"},
                threshold=1,
                within=ZOMBIE_AFTER,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name="Crashed",
                    force=False,
                    message=f"No sign of its process for {ZOMBIE_AFTER.seconds} s; the next run goes on where it was.",
                )
            ],
        )
    ]
    if notify is None:
        return cores

    def told(subject: str, body: str) -> SendNotification:
        where = "\n{{ flow_run|ui_url }}"
        return SendNotification(block_document_id=notify.document, subject=subject, body=body + where)

    cores.append(
        AutomationCore(
            name=TELL_OF_FAILED,
            description=f"A backup or check that failed or crashed is told to {notify.address}.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                match=runs,  # type: ignore[arg-type]
                match_related=ours,  # type: ignore[arg-type]
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
                for_each={"prefect.resource.id"},
                threshold=1,
                within=timedelta(0),
            ),
            actions=[told("a0backup: {{ flow_run.name }} {{ flow_run.state.name }}", "{{ flow_run.state.message }}")],
        )
    )
    cores.append(
        AutomationCore(
            name="a0backup: tell of late runs",
            description=f"A run that no worker has taken up in time is told to {notify.address}.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                match=runs,  # type: ignore[arg-type]
                match_related=ours,  # type: ignore[arg-type]
                expect={"prefect.flow-run.Late"},
                for_each={"prefect.resource.id"},
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                told(
                    "a0backup: {{ flow_run.name }} is late",
                    f"No worker of the pool {POOL} has taken it up. Is one running?",
                )
            ],
        )
    )
    return cores
