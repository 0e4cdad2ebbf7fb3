"""A password that could not be read when its artifact was stored is destroyed by the next settle, in no manifest."""

from typing import Any


async def test_a_password_that_is_in_no_manifest_survives_the_settle(sealed: Any) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    [file] = sealed.files
    content = file.read_bytes()
    # Unreadable for one night: an error of the disk, or torn and restored from a copy.
    file.write_bytes(b"{torn")
    desk.tell("backup-delete", "false_delete")
    sealed.configure(a0cli={"call_timeout": "0.5s"})
    second = await desk.night(flow_run="run-2")
    assert second.error is not None  # stored, and the deletion is not confirmed
    assert "look at it" in second.notes
    # The operator looks at it and puts it right.
    file.write_bytes(content)
    desk.forget()
    third = await desk.night(flow_run="run-3")
    assert third.error is None
    earlier = desk.stored[0]
    assert file.exists() or sealed.can_be_opened(earlier), (earlier.encryption, sealed.files)


async def test_one_that_is_readable_again_by_the_settle_is_not_removed(sealed: Any) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    [file] = sealed.files
    content = file.read_bytes()
    file.write_bytes(b"")  # what a failing disk gives, for a while

    def back_again(stage: str) -> None:
        if stage == "store":
            file.write_bytes(content)

    ended = await desk.night(after=back_again)
    assert ended.error is None
    [manifest] = desk.stored
    assert file.exists() or sealed.can_be_opened(manifest), (manifest.encryption, sealed.files)
