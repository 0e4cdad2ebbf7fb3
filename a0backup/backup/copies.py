"""Copy a stored artifact to the further places, before its backup is deleted on the node."""

from a0backup.backup.context import Context
from a0backup.backup.steps import Done, StepName, step
from a0backup.errors import NotCopiedError
from a0backup.report.outcomes import NOT_COPIED
from a0backup.vault.manifest import Manifest


class Copies:
    """The copies that one run makes of one kind's artifacts."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.session, self.kind = context.session, context.kind

    @step(StepName.COPY)
    async def copy(self, stored: Manifest) -> Done:
        """Bring *stored* to all places, and prove it there. A place that fails is noted.

        Raise NotCopiedError if fewer than `require_copies` hold it, VaultError.
        """
        context, required = self.context, self.context.fleet.copies_required
        copied = await self.session.run.places.copy(stored, lambda text: context.tell(StepName.COPY, text))
        if len(copied.proven) < required:
            remedy = next((error.hint() for error in copied.failed.values() if error.hint()), "")
            reasons = copied.reasons()
            raise NotCopiedError(self.session.node.name, stored.id, len(copied.proven), required, reasons, remedy)
        for reason in copied.reasons():
            context.note(f"{NOT_COPIED} {reason}; `a0backup copy` copies what is missing there")
        places = ", ".join(sorted(copied.proven)) or "no place"
        return Done(f"{stored.id} is proven in {places}", cached=bool(copied.proven) and not copied.sent)
