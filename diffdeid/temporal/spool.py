"""Storage on disk, so that memory does not grow with the length of a video or the number of people in it."""

from __future__ import annotations

import pickle
import tempfile
from typing import Any


class Spool:
    """Stores objects in a temporary file without a name, which ends with the process. Released room is used again."""

    def __init__(self):
        self._file = tempfile.TemporaryFile(prefix="diffdeid-")  # noqa: SIM115  closed when collected
        self._places: list[tuple[int, int]] = []  # by number: where an object begins, and the room that it has
        self._free: list[int] = []

    def store(self, thing: Any) -> int:
        """Store an object; gives its number. Raises `OSError` if the disk is full."""
        content = pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
        number = next((free for free in self._free if self._places[free][1] >= len(content)), None)
        if number is None:
            number = len(self._places)
            self._places.append((sum(self._places[-1]) if self._places else 0, len(content)))
        else:
            self._free.remove(number)
        try:
            self._file.seek(self._places[number][0])
            self._file.write(content)
            self._file.flush()
        except OSError:
            self.release(number)
            raise
        return number

    def load(self, number: int) -> Any:
        """Load the object with this number."""
        start, room = self._places[number]
        self._file.seek(start)
        return pickle.loads(self._file.read(room))

    def release(self, number: int) -> None:
        """Free the room of the object with this number."""
        self._free.append(number)
