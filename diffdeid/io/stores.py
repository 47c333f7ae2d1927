"""Files in object stores, and wherever else fsspec reaches, named by URLs.

The other modules know only files on this computer. So a source is copied into a private folder just before it is read, and an
output is written and checked there before it gets its name in the store, as a whole or not at all.
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

if TYPE_CHECKING:  # its import takes time, and only URLs need it
    from upath import UPath

_SECRET = re.compile(r"://[^/@:]*:(?!\d+/)[^@]*@|https?://([^/]*@|[^?]*\?)")  # a password or token, a query that may be signed
_PUTS_WHOLE = {"abfs", "abfss", "az", "gcs", "gs", "s3", "s3a"}  # these stores show a file only when it is complete


def location(name: str) -> Path | UPath:
    """What a name stands for: a path on this computer or, for a URL, one in a store.

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

    os.environ["HF_XET_CHUNK_CACHE_SIZE_BYTES"] = "0"  # else the Hub's client may keep what it reads
    try:
        path = UPath(name)
        path.fs.invalidate_cache()  # connects, and trusts no earlier listing
    except Exception as error:  # drivers raise almost anything, and name the package that is missing
        raise ValueError(f"`{name}` cannot be reached: {error}. See docs/scaling.md, “Object stores”.") from error
    return path


def search(path: UPath) -> tuple[UPath, list[str]]:
    """The folder that a URL or pattern names, and the matching files: sorted paths relative to this folder.

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
        store.invalidate_cache()  # later questions are asked of the store again
    return root, sorted(name.removeprefix(root.path.rstrip("/") + "/") for name in found)


def version(path: Path | UPath) -> list[Any]:
    """Values that tell whether a file is still the same, without reading it. They survive JSON.

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
        """A file on this computer: a copy if it is in a store.

        Raises:
            OSError: it cannot be downloaded.
        """
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
        """Where to write a file. It gets its name in the store at the end of the block, unless that ends with an error.

        Raises:
            FileExistsError: there is such a file by now, which must stay.
            OSError: it cannot be uploaded.
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
        """A text in which URLs take the place of the paths of their copies."""
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
    """Upload a file under a hidden name, which it keeps until it is complete."""
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
