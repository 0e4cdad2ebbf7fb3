"""Bytes that come in pieces are read as if they came in one."""

import io
import pickle

from hypothesis import given
from hypothesis import strategies as st

from a0backup.artifact.byte_stream import ByteStream, Fault
from a0backup.errors import GzipDamagedError

STEPS = st.lists(
    st.tuples(st.sampled_from(["some", "take", "skip", "give back"]), st.integers(1, 40)), min_size=1, max_size=30
)


@given(pieces=st.lists(st.binary(max_size=20), max_size=20), steps=STEPS)
def test_pieces_are_read_like_one_file_that_holds_them_all(pieces: list[bytes], steps: list[tuple[str, int]]) -> None:
    whole = io.BytesIO(b"".join(pieces))
    stream = ByteStream(iter(pieces))
    last = b""
    for how, count in steps:
        match how:
            case "some":
                got = stream.some(count)
                assert len(got) <= count
                last = whole.read(len(got))
                assert got == last
                assert got or not whole.read(1)
            case "take":
                got = stream.take(count)
                last = whole.read(count)
                assert got == last
            case "skip":
                assert stream.skip(count) == len(whole.read(count))
                last = b""
            case "give back":
                unused, last = last[-count:], b""
                stream.give_back(unused)
                whole.seek(-len(unused), io.SEEK_CUR)
        assert stream.position == whole.tell()


def test_a_fault_becomes_an_error_that_names_the_node() -> None:
    error = pickle.loads(pickle.dumps(Fault(GzipDamagedError, "it is cut").error("a0-1", "backup")))
    assert type(error) is GzipDamagedError
    assert (error.node, error.kind, error.reason) == ("a0-1", "backup", "it is cut")
