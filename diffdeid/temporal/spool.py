"""Things on disk, so that memory does not grow with the length of a video or the number of people in it."""

from __future__ import annotations

import pickle
import tempfile
from typing import Any


class Spool:
    """Faces, and views of people, in a file that has no name and dies with the process. Room that is released is used again."""

    def __init__(self):
        self._file = tempfile.TemporaryFile(prefix="diffdeid-")  # noqa: SIM115  closed when collected
        self._places: list[tuple[int, int]] = []  # by number: where a thing begins, and the room that it has
        self._free: list[int] = []

    def store(self, thing: Any) -> int:
        """Put a thing away; its number gives it back. Raises `OSError` where the disk is full."""
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
        """The thing of a number."""
        start, room = self._places[number]
        self._file.seek(start)
        return pickle.loads(self._file.read(room))

    def release(self, number: int) -> None:
        """Let others have the room of a thing."""
        self._free.append(number)
