"""Things come back as they were put away, and the file does not grow when they are exchanged."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffdeid.temporal.shelf import Shelf


@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.binary(max_size=300))), max_size=40))
def test_a_shelf_is_a_dictionary(steps):
    """`None` takes a thing off."""
    shelf, known = Shelf(), {}
    for key, thing in steps:
        if thing is not None:
            shelf[key] = known[key] = thing
        elif key in known:
            assert shelf.pop(key) == known.pop(key)
        assert all((number in shelf) == (number in known) for number in range(4))
    assert {key: shelf.pop(key) for key in known} == known


def test_room_that_becomes_free_is_used_again():
    shelf = Shelf()
    for number in range(20):
        shelf["a"], shelf[number] = torch.full((1000,), number), torch.zeros(1000)
        shelf.pop(number)
    assert shelf._end < 4 * 1000 * 8
    assert torch.equal(shelf.pop("a"), torch.full((1000,), 19))


def test_what_cannot_be_put_away_is_not_there(monkeypatch):
    """A full disk."""
    shelf = Shelf()
    shelf["a"] = "one"

    class Full:
        def seek(self, place):
            pass

        def write(self, content):
            raise OSError("No space left on device")

    file = shelf._file
    monkeypatch.setattr(shelf, "_file", Full())
    for key in ("a", "b"):
        with pytest.raises(OSError, match="No space"):
            shelf[key] = "two"
        assert key not in shelf
    monkeypatch.setattr(shelf, "_file", file)
    shelf["b"] = "three"
    assert shelf.pop("b") == "three" and len(shelf) == 0
