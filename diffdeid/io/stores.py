"""Files in object stores, and wherever else fsspec reaches, named by URLs.

All else knows files on this computer alone. So a source is copied into a private folder just before it is read, and an output
is written and checked there before it gets its name in the store, as a whole or not at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import has_magic
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from diffdeid.io.files import taken, temporary_name

if TYPE_CHECKING:  # it takes its time, and is for URLs only
    from upath import UPath

_SECRET = re.compile(r"://[^/@:]*:(?!\d+/)[^@]*@|https?://([^/]*@|[^?]*\?)")  # a password or token, a query that may be signed
_PUTS_WHOLE = {"abfs", "abfss", "az", "gcs", "gs", "s3", "s3a"}  # their files are seen when they are complete, and not before


def location(name: str) -> Path | UPath:
    """What a name stands for: a path on this computer or, of a URL, one in a store.

    Raises:
        ValueError: fsspec cannot reach it, or it may hold a secret, which records and messages would tell.
    """
    if "://" not in name:
        return Path(name)
    if _SECRET.search(name):
        raise ValueError(
            f"A URL that begins with `{name.split('://')[0]}://` holds a password or a query, which records and messages would "
            "tell. Leave it out, and give it to the driver: see “Credentials” in docs/scaling.md."
        )
    if "::" in name:
        raise ValueError(f"`{name}` is a chain of URLs, which may keep copies on the way. Name the files in their store.")
    from upath import UPath

    os.environ["HF_XET_CHUNK_CACHE_SIZE_BYTES"] = "0"  # or the Hub's client may keep what it reads
    try:
        path = UPath(name)
        path.fs.invalidate_cache()  # connects, and trusts no earlier listing
    except Exception as error:  # drivers raise almost anything, and name the package that is missing
        raise ValueError(f"`{name}` cannot be reached: {error}. See docs/scaling.md, “Object stores”.") from error
    return path


def search(path: UPath) -> tuple[UPath, list[str]]:
    """The folder that a URL or pattern is about, and the files that are meant, relative to it and in order.

    Raises:
        ValueError: the store does not answer.
    """
    store, root = path.fs, path
    try:
        if store.isdir(path.path):
            found = store.find(path.path)
        else:
            found = [name for name, info in store.glob(path.path, detail=True).items() if info["type"] == "file"]
            while has_magic(root.path):
                root = root.parent
    except Exception as error:
        raise ValueError(f"Cannot search `{path}`: {error}.") from error
    finally:
        store.invalidate_cache()  # what is there is asked anew from now on
    return root, sorted(name.removeprefix(root.path.rstrip("/") + "/") for name in found)


def version(path: Path | UPath) -> list[Any]:
    """What tells whether a file is still the same, without reading it. Survives JSON.

    Raises:
        OSError: there is no such file.
    """
    if not isinstance(path, Path):
        return [path.fs.ukey(path.path)]
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


class Copies:
    """Copies of files that are in stores, in a folder that nobody else can read. Files of this computer need none.

    The folder is gone after `close`, with this object, or at the end of the process, whichever comes first.
    """

    def __init__(self):
        self._folder: TemporaryDirectory | None = None
        self._urls: dict[str, str] = {}

    def fetch(self, path: Path | UPath) -> Path:
        """A file as one of this computer; raise `OSError` where the store does not give it."""
        if isinstance(path, Path):
            return path
        copy = self._new(path)
        try:
            path.fs.get_file(path.path, str(copy))
        except Exception as error:
            raise OSError(f"`{path}` cannot be downloaded ({type(error).__name__}: {error}).") from error
        return copy

    @contextmanager
    def output(self, path: Path | UPath, overwrite: bool) -> Iterator[Path]:
        """Where to write a file, which gets its name at the end of the block, unless that ends with an error.

        Raises:
            FileExistsError: one is there by now and must stay.
            OSError: the store does not take it.
        """
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
            return
        copy = self._new(path)
        try:
            yield copy
            put = _put_whole if path.protocol in _PUTS_WHOLE else _put_and_rename
            try:
                put(copy, path, overwrite)
            except FileExistsError as error:
                raise FileExistsError(taken(path)) from error
            except Exception as error:
                raise OSError(f"`{path}` cannot be uploaded ({type(error).__name__}: {error}).") from error
        finally:
            copy.unlink(missing_ok=True)

    def with_urls(self, text: str) -> str:
        """What is said of copies, said of the files that they stand for."""
        for copy, url in self._urls.items():
            text = text.replace(copy, url)
        return text

    def close(self) -> None:
        """Remove all copies."""
        if self._folder is not None:
            self._folder.cleanup()

    def _new(self, path: UPath) -> Path:
        self._folder = self._folder or TemporaryDirectory(prefix="diffdeid-")
        copy = Path(self._folder.name, f"{len(self._urls)}{path.suffix}")
        self._urls[str(copy)] = str(path)
        return copy


def _put_whole(copy: Path, path: UPath, overwrite: bool) -> None:
    path.fs.put_file(str(copy), path.path, mode="overwrite" if overwrite else "create")


def _put_and_rename(copy: Path, path: UPath, overwrite: bool) -> None:
    """Half of a file has a hidden name."""
    store, hidden = path.fs, temporary_name(path, path.suffix)
    store.makedirs(path.parent.path, exist_ok=True)
    try:
        store.put_file(str(copy), hidden.path)
        if not overwrite and store.exists(path.path):
            raise FileExistsError
        store.mv(hidden.path, path.path)
    except BaseException:
        with suppress(Exception):
            store.rm_file(hidden.path)
        raise
