"""Things on disk, so that memory does not grow with the number of people in a video."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Hashable
from typing import Any


class Shelf:
    """Things by their keys, in a file that has no name and dies with the process. Room that becomes free is used again."""

    def __init__(self):
        self._file = tempfile.TemporaryFile(prefix="diffdeid-")  # noqa: SIM115  closed when collected
        self._places: dict[Hashable, tuple[int, int]] = {}  # where a thing begins, and the room that it has
        self._free: list[tuple[int, int]] = []
        self._end = 0

    def __setitem__(self, key: Hashable, thing: Any) -> None:
        """Put a thing in the place of the one with this key, if there is one."""
        content = pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
        if key in self._places:
            self._free.append(self._places.pop(key))
        place = next((place for place in self._free if place[1] >= len(content)), None)
        if place is None:
            place = self._end, len(content)
            self._end += len(content)
        else:
            self._free.remove(place)
        try:
            self._file.seek(place[0])
            self._file.write(content)
            self._file.flush()
        except OSError:
            self._free.append(place)
            raise
        self._places[key] = place

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def pop(self, key: Hashable) -> Any:
        """Take a thing off the shelf."""
        place = self._places.pop(key)
        self._free.append(place)
        self._file.seek(place[0])
        return pickle.loads(self._file.read(place[1]))
