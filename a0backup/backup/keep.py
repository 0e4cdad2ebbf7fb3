"""Store the verified bytes of a node backup: in the vault, read back, with their manifest."""

from a0backup.artifact.inspection import Contents, verified_by
from a0backup.backup.context import Context, now
from a0backup.backup.evidence import password_of
from a0backup.backup.reconcile import Claim
from a0backup.backup.retrieve import Retrieval
from a0backup.backup.steps import Done, StepName, step
from a0backup.vault.journal import Effect
from a0backup.vault.manifest import Manifest, ManifestNode, ManifestPassword
from a0backup.vault.storing import store


class Storing:
    """Stores the bytes that a retrieval has verified."""

    def __init__(self, context: Context, retrieval: Retrieval) -> None:
        self.context, self._retrieval = context, retrieval
        self.session, self.kind = context.session, context.kind
        self.stored: Manifest | None = None
        self.ours = False  # whether this vault started it, as far as that is proven

    @step(StepName.STORE)
    async def store(self) -> Done:
        """Store the bytes with their manifest and read them back from the vault's disk. Raise VaultError."""
        context, retrieval, node = self.context, self._retrieval, self.context.node
        # Store what cannot be opened as foreign: a waiting run must not take it for its outcome.
        journal = context.journal if retrieval.bytes.ours else None
        contents = retrieval.bytes.inspection.contents if retrieval.bytes.inspection else None
        already = retrieval.bytes.stored
        if already is None:
            assert retrieval.bytes.digests is not None, "store comes after verify"
            self.stored = await context.on_disk(
                store,
                context.vault,
                node=ManifestNode(name=node.name, host=node.host, port=node.port),
                kind=self.kind,
                name_on_node=retrieval.found.name,
                expected=retrieval.bytes.digests,
                started_at=journal.started_at if journal else None,
                password=await self._password(contents, ours=journal is not None),
                verified=verified_by(contents),
                flow_run=self.session.run.id,
                now=now(),
            )
        else:
            self.stored = already
        self.ours = journal is not None
        if journal is not None:
            await context.note_journal(f"stored {self.stored.id}", pinned=retrieval.found.identity)
        else:
            if already is None:
                self._report_foreign(self.stored)
            if context.journal is not None:
                await context.forget_journal()
        await context.sweep()
        if already is not None:
            return Done(f"stored already as {self.stored.id}", cached=True)
        return Done(f"stored as {self.stored.id} and read back")

    def _report_foreign(self, stored: Manifest) -> None:
        claim, journal, note = self._retrieval.claim, self.context.journal, self.context.note
        if claim is Claim.NONE:
            note(f"a backup that this vault did not start was on the node; it is kept as {stored.id}")
            if journal is not None and journal.effect is not Effect.REFUSED:
                note("it replaced the backup that this vault had started, which is no longer on the node")
        elif self._retrieval.bytes.not_opened is not None:
            note(f"a backup that cannot be opened was on the node; it is kept as {stored.id}")
        else:
            note(
                f"a backup that an earlier run may have started was on the node; nothing proves that, so it is kept as"
                f" {stored.id}, and a new one is made"
            )

    async def _password(self, contents: Contents | None, *, ours: bool) -> ManifestPassword:
        context, bytes_ = self.context, self._retrieval.bytes
        if contents is not None:
            opened_by = bytes_.tried[contents.opened_by]
            return password_of(opened_by=opened_by, only_tried=None, fits=True, candidates=(), journal=None)
        candidates = await context.on_disk(context.sealed_files.all)
        for name in await context.on_disk(context.sealed_files.unreadable):
            context.note(f"the sealed password {name} cannot be read; restore it from a copy, or remove it")
        for name in await context.on_disk(context.sealed_files.later):
            context.note(
                f"the sealed password {name} was written by a later version of a0backup: keep it, and use that version"
            )
        return password_of(
            opened_by=None,
            only_tried=bytes_.tried[0] if bytes_.inspection is not None and len(bytes_.tried) == 1 else None,
            fits=bytes_.not_opened is not None and bytes_.not_opened.password_fits,
            candidates=candidates,
            journal=context.journal if ours else None,
        )
