"""The automations that the engine must hold: they end zombie runs and notify of failed and late ones."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

POOL = "appliance"


TELL_OF_FAILED = "a0backup: tell of failed runs"


# The tag of each run that a person waits for. The night reports on the node runs that it started.
WATCHED_TAG = "a0backup"


NODE_TAG = "a0backup-node"


# Prefect's default is one heartbeat per 180 s. One missed heartbeat, while a server restarts, does not mean a death.
ZOMBIE_AFTER = timedelta(seconds=3 * 180)


_ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")


@dataclass(frozen=True)
class Notify:
    """The operator's notification block: its address SLUG/NAME and the id of its document."""

    address: str
    document: UUID


def automations(notify: Notify | None) -> list[AutomationCore]:
    """Return the automations: end runs whose process died and, with *notify*, notify of failed and late runs."""
    ours = {"prefect.resource.role": "tag", "prefect.resource.id": [f"prefect.tag.{WATCHED_TAG}"]}
    with_nodes = {**ours, "prefect.resource.id": [f"prefect.tag.{WATCHED_TAG}", f"prefect.tag.{NODE_TAG}"]}
    runs = {"prefect.resource.id": "prefect.flow-run.*"}
    ended = {f"prefect.flow-run.{name}" for name in _ENDS}
    cores = [
        AutomationCore(
            name="a0backup: end zombie runs",
            description=(
                f"A run that gives no sign for {ZOMBIE_AFTER.seconds} s, because its machine or worker died, is marked"
                " Crashed. The next run resumes it."
            ),
            trigger=EventTrigger(
                posture=Posture.Proactive,
                match=runs,  # type: ignore[arg-type]  # Prefect's own examples pass a dict
                match_related=with_nodes,  # type: ignore[arg-type]
                # A run may die before its first heartbeat, which comes with Running. So the time counts from the moment
                # a worker takes the run up.
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
                    message=f"No sign of its process for {ZOMBIE_AFTER.seconds} s; the next run resumes it.",
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
            description=f"A failed or crashed backup or check is reported to {notify.address}.",
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
            description=f"A run that no worker has started in time is reported to {notify.address}.",
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
                    f"No worker of the pool {POOL} has started it. Is one running?",
                )
            ],
        )
    )
    return cores
