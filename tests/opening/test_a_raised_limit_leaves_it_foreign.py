"""TooLargeUnpackedError in the sealed mode: the operator raises the limit as the HINT says, and the backup is
foreign for good.
"""

from typing import Any

from a0backup.errors import TooLargeUnpackedError


async def test_after_the_limit_was_raised_the_backup_is_finished_as_ours(sealed: Any) -> None:
    desk = sealed.desk
    # Its password opened it, which proves whose it is: only its size went beyond fleet.yaml.
    sealed.configure(existing="fail", contents={"max_unpacked": "1MB"})
    desk.tell("backup", "size", bytes=3_000_000)
    first = await desk.night(flow_run="run-1")
    assert isinstance(first.error, TooLargeUnpackedError)
    assert "max_unpacked" in first.outcome.hint
    sealed.configure(existing="fail")
    nights = [await desk.night(flow_run=f"run-{number}") for number in (2, 3)]
    assert nights[-1].error is None, [str(night.error) for night in nights]


async def test_with_preserve_its_manifest_says_whose_it_is(sealed: Any) -> None:
    desk = sealed.desk
    sealed.configure(contents={"max_unpacked": "1MB"})
    desk.tell("backup", "size", bytes=3_000_000, times=1)
    await desk.night(flow_run="run-1")
    sealed.configure()
    assert (await desk.night(flow_run="run-2")).error is None
    [large] = [manifest for manifest in desk.stored if manifest.artifact.size > 1_000_000]
    assert large.encryption.password.mode == "sealed", large.encryption.password.mode
