"""Files that appear complete or not at all, and files that must not change while they are read."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from diffdeid.errors import VerificationError, VideoError

Check = Callable[[Path], None]  # checks a finished file before it gets its name; raises `VerificationError`


def write_whole(path: Path, content: bytes | memoryview, overwrite: bool = True, check: Check | None = None) -> None:
    """Write a file that appears complete, after it has passed its `check`, or not at all.

    Raises:
        FileExistsError: the file exists and `overwrite` is off.
        VerificationError: the new file did not pass; an existing file stays as it is.
    """
    temporary = temporary_name(path, ".tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        pass_check(check, temporary, path)
        put(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


def pass_check(check: Check | None, temporary: Path, path: Path) -> None:
    """Check a file that will be named `path`; errors use that name."""
    try:
        if check is not None:
            check(temporary)
    except VerificationError as error:
        raise VerificationError(f"`{path}` was not written, because it did not pass the check: {error}.") from error


def temporary_name(path: Path, suffix: str) -> Path:
    """The name of a new hidden file beside `path`, on the same file system, so that `put` need not copy."""
    return path.with_name(f".diffdeid-{secrets.token_hex(8)}{suffix}")


def taken(path: Path) -> str:
    """The message of an error about a file that exists and must not be replaced."""
    return f"`{path}` exists. Pass `--existing replace` to replace it (in Python, `overwrite=True`)."


def put(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name. If another file has the name by now, replace it or raise `FileExistsError`."""
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


def fingerprint(file: Path | BinaryIO) -> str:
    """A hash of the content of a file."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return fingerprint(opened)
    file.seek(0)
    return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


class HeldFile:
    """A file that is read twice and must stay the same. It may be renamed once the second reading has begun.

    Attributes:
        fingerprint: a hash of the content. Time stamps are no proof, because servers touch files.

    Raises:
        VideoError: the file cannot be read, or a check finds that it has changed.
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
        """Raise `VideoError` if the name no longer stands for this file."""
        if not (self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))):
            raise self._changed()

    def check_content(self) -> None:
        """Raise `VideoError` if the content has changed."""
        if self._hash() != self.fingerprint:
            raise self._changed()

    def _hash(self) -> str:
        return fingerprint(self._file)

    def _changed(self) -> VideoError:
        return VideoError(f"`{self.path}` changed while it was read, so faces may have been missed. No output was made.")
