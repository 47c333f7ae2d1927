"""Finished parts of a video that is being made, so that an interrupted run can go on.

They lie in a hidden folder beside the output until it is complete. Nothing of the source is in them: encoded results, reports,
and the seed that gives the same people again.
"""

from __future__ import annotations

import json
import secrets
import shutil
from itertools import zip_longest
from pathlib import Path
from typing import Any

from diffdeid.errors import VideoError
from diffdeid.io.files import write_whole

PART_FRAMES = 240


class VideoParts:
    """The parts made so far.

    Args:
        output: the video to be made.
        job: what the parts depend on; parts of another job are thrown away. Must survive JSON.
        seed: of the people; `None` for the one stored, or a fresh one.
    """

    def __init__(self, output: Path, job: dict[str, Any], seed: int | None = None):
        self.folder = output.with_name(f".{output.name}.parts")
        self._index = self.folder / "index.json"
        self._suffix = ".webm" if output.suffix.lower() == ".webm" else ".mp4"  # of a container that keeps decoding times
        stored = self._stored()
        if stored is None or stored["job"] != job or seed not in (None, stored["seed"]):
            stored = {"job": job, "seed": secrets.randbits(62) if seed is None else seed, "frames": [], "reports": []}
        self.seed, self.reports, self._frames = stored["seed"], stored["reports"], stored["frames"]
        self._content = stored

    def begin(self, reports: list[dict[str, Any]]) -> None:
        """Make room for parts, and throw those of another job or cast away. Nothing is written before.

        Args:
            reports: of everybody in the video, before the first frame.
        """
        if not self.reports or any(_role(one) != _role(other) for one, other in zip_longest(self.reports, reports, fillvalue={})):
            self._frames.clear()
            self.reports[:] = reports
        try:
            if not self._frames:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)
            self._save()
        except OSError as error:
            raise VideoError(f"Cannot write `{self.folder}`: {error.strerror}.") from error

    @property
    def num_frames(self) -> int:
        """In all finished parts."""
        return sum(self._frames)

    @property
    def paths(self) -> list[Path]:
        """Of all finished parts, in their order."""
        return [self._path(number) for number in range(len(self._frames))]

    @property
    def next_path(self) -> Path:
        """Of the part to be made now."""
        return self._path(len(self._frames))

    def add(self, num_frames: int, reports: list[dict[str, Any]]) -> None:
        """`next_path` was written; `reports` say what happened up to its end."""
        self._frames.append(num_frames)
        self.reports[:] = reports
        self._save()

    def remove(self) -> None:
        """Throw all parts away."""
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}{self._suffix}"

    def _save(self) -> None:
        write_whole(self._index, json.dumps(self._content).encode())

    def _stored(self) -> dict[str, Any] | None:
        try:
            stored = json.loads(self._index.read_bytes())
            complete = all(self._path(number).is_file() for number in range(len(stored["frames"])))
            usable = isinstance(sum(stored["frames"]), int) and {"job", "seed", "reports"} <= stored.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or a damaged one
            return None
        return stored if complete and usable else None


def _role(report: dict[str, Any]) -> tuple:
    """What does not change about a person while frames are rendered."""
    return tuple(report.get(name) for name in ("number", "method", "level", "attempts"))
