"""Objects are loaded as they were stored, and the file does not grow when they are replaced."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffdeid.temporal.spool import Spool


@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.binary(max_size=300))), max_size=40))
def test_what_was_stored_is_loaded(steps):
    """Objects are loaded by their numbers; `None` releases one."""
    spool, numbers, known = Spool(), {}, {}
    for key, thing in steps:
        if key in known:
            assert spool.load(numbers[key]) == known.pop(key)
            spool.release(numbers.pop(key))
        if thing is not None:
            numbers[key], known[key] = spool.store(thing), thing
        assert {key: spool.load(number) for key, number in numbers.items()} == known


def test_room_that_becomes_free_is_used_again():
    spool, kept = Spool(), None
    for number in range(20):
        if kept is not None:
            spool.release(kept)
        kept, other = spool.store(torch.full((1000,), number)), spool.store(torch.zeros(1000))
        spool.release(other)
    assert sum(spool._places[-1]) < 4 * 1000 * 8
    assert torch.equal(spool.load(kept), torch.full((1000,), 19))


def test_the_room_of_what_could_not_be_stored_is_free(monkeypatch):
    """The disk is full."""
    spool = Spool()
    first = spool.store("one")

    class Full:
        def seek(self, place):
            pass

        def write(self, content):
            raise OSError("No space left on device")

    file = spool._file
    monkeypatch.setattr(spool, "_file", Full())
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            spool.store("two")
    monkeypatch.setattr(spool, "_file", file)
    assert spool.load(spool.store("two")) == "two" and spool.load(first) == "one"
    assert len(spool._places) == 2
