"""Files that appear whole or not at all, and files that must not change while they are read."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from diffdeid.errors import VideoError


def write_whole(path: Path, content: bytes | memoryview, overwrite: bool = True) -> None:
    """Write a file that appears complete or not at all; raise `FileExistsError` where one is there and must stay."""
    temporary = temporary_name(path, ".tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        put(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path, suffix: str) -> Path:
    """A hidden file beside `path` that nobody else has, so that `put` need not copy."""
    return path.with_name(f".diffdeid-{secrets.token_hex(8)}{suffix}")


def taken(path: Path) -> str:
    """What is said of a file that is there and was not to be replaced."""
    return f"`{path}` exists. Pass `--overwrite` (`overwrite=True`) to replace it."


def put(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name; raise `FileExistsError` where the name is taken, by now too, and `overwrite` is false."""
    if not overwrite:
        try:
            os.link(temporary, path)
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: take the name, then fill it
            path.open("xb").close()
            try:
                os.replace(temporary, path)
            except OSError:
                path.unlink()
                raise
            return
    os.replace(temporary, path)


class HeldFile:
    """A file that is read twice and must stay the same. It may lose its name once the second reading has begun.

    Attributes:
        fingerprint: a hash of the content. Time stamps tell less, for servers touch files.

    Raises:
        VideoError: it cannot be read, or has changed, wherever that is checked.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise VideoError(f"`{path}` cannot be read: {error.strerror}.") from error
        self.fingerprint = self._hash()

    def __enter__(self) -> HeldFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def check_name(self) -> None:
        """Whether the name still stands for this file."""
        if not (self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))):
            raise self._changed()

    def check_content(self) -> None:
        """Whether the content is what it was."""
        if self._hash() != self.fingerprint:
            raise self._changed()

    def _hash(self) -> str:
        self._file.seek(0)
        return hashlib.file_digest(self._file, "blake2b").hexdigest()

    def _changed(self) -> VideoError:
        return VideoError(f"`{self.path}` changed while it was read, so faces may have been missed. No output was made.")
