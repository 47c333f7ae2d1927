"""Finished parts of a video, with which an interrupted run can go on, and a run with corrections renders only what changed.

They lie in a hidden folder beside the output until it is complete. They hold nothing of the source: only encoded results,
reports, and the seed that gives the same people again.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffdeid.errors import VideoError
from diffdeid.io.files import write_whole

PART_FRAMES = 240


class VideoParts:
    """The parts made so far, each named by a hash of what it shows.

    Args:
        output: the video to be made.
        job: what all parts depend on, as JSON values; parts of another job are deleted.
        seed: of the people; `None` for the stored one, or else a fresh one.

    Attributes:
        seed: the seed in use.
        reports: what happened in each part, by its name.
    """

    def __init__(self, output: Path, job: dict[str, Any], seed: int | None = None):
        self.folder = output.with_name(f".{output.name}.parts")
        self._index = self.folder / "index.json"
        self._suffix = ".webm" if output.suffix.lower() == ".webm" else ".mp4"  # containers that keep decoding times
        stored = self._stored()
        if stored is None or stored["job"] != job or seed not in (None, stored["seed"]):
            stored = {"job": job, "seed": secrets.randbits(62) if seed is None else seed, "parts": {}}
        self.seed, self.reports = stored["seed"], stored["parts"]
        self._content = stored

    def begin(self, names: Collection[str]) -> None:
        """Prepare the folder for the parts of these names, and delete others. Nothing is written before this call."""
        for name in self.reports.keys() - names:
            del self.reports[name]
        try:
            if not self.reports:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)
            self._save()
            kept = {self._index, *map(self.path, self.reports)}
            for path in set(self.folder.iterdir()) - kept:
                path.unlink()
        except OSError as error:
            raise VideoError(f"Cannot write `{self.folder}`: {error.strerror}.") from error

    def path(self, name: str) -> Path:
        """Where a part lies, or is to be written."""
        return self.folder / f"{name}{self._suffix}"

    def add(self, name: str, reports: list[dict[str, Any]]) -> None:
        """Record that a part was written, with the reports of what happened in it."""
        self.reports[name] = reports
        self._save()

    def remove(self) -> None:
        """Delete all parts."""
        shutil.rmtree(self.folder)

    def _save(self) -> None:
        write_whole(self._index, json.dumps(self._content).encode())

    def _stored(self) -> dict[str, Any] | None:
        try:
            stored = json.loads(self._index.read_bytes())
            complete = all(self.path(name).is_file() for name in stored["parts"])
            usable = isinstance(stored["parts"], dict) and {"job", "seed"} <= stored.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or a damaged one
            return None
        return stored if complete and usable else None
