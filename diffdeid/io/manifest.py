"""Which outputs are finished, and what they depend on: a file of JSON lines, from which a later run goes on.

The first line has a salt. Each of the others is about an output, or about an input that needs none because it shows no face:
`{"input", "output", "status", "size", "digest"}`. The digest tells whether source, options, weights and seed are still the same,
and reveals nothing else. Its key comes from a slow hash, so that seeds cannot be tried faster on a manifest than on the results.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from diffdeid.io.files import write_whole
from diffdeid.io.stores import version


class Manifest:
    """What was finished so far. Only one process at a time may add to a file.

    Args:
        path: the file; made when there is none. A last line that was cut off is removed.
        depends_on: what all outputs depend on, such as weights and seed. Must survive JSON.

    Raises:
        ValueError: the file is no manifest; it stays as it is.
    """

    def __init__(self, path: Path, depends_on: Any):
        self.path, self._entries = path, {}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"manifest": 1, "salt": secrets.token_hex(16)}).encode() + b"\n", overwrite=False)
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            head, *entries = map(json.loads, whole.splitlines())
            if not isinstance(head, dict) or head.get("manifest") != 1:
                raise ValueError("its first line does not say that it is one")
            salt = bytes.fromhex(head["salt"])
            for entry in entries:
                self._remember(entry)
        except (ValueError, TypeError, KeyError) as error:
            missing = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"`{path}` is not a manifest as `--manifest` writes it ({missing}). Name a new file.") from error
        if whole != content:
            os.truncate(path, len(whole))
        self._key = hashlib.scrypt(_json(depends_on), salt=salt, n=2**15, r=8, p=1, maxmem=2**26, dklen=32)

    def digest(self, source: Path, depends_on: Any) -> str:
        """The digest of a source as it is now, and of what else its outputs depend on, which must survive JSON.

        Raises:
            OSError: there is no such file.
        """
        return hashlib.blake2b(_json([*version(source), depends_on]), key=self._key, digest_size=16).hexdigest()

    def holds(self, source: Path, output: Path, digest: str, on_no_face: Literal["error", "skip", "copy"]) -> bool:
        """Whether an output was finished and is there, or is not needed because the source shows no face."""
        made, unneeded = self._entries.get(("output", str(output))), self._entries.get(("input", str(source)))
        if made and made["digest"] == digest and output.is_file() and output.stat().st_size == made["size"]:
            return made["status"] != "no_face" or on_no_face == "copy"
        return bool(unneeded and unneeded["digest"] == digest and on_no_face == "skip" and not output.exists())

    def lists(self, output: Path) -> bool:
        """Whether an output was ever finished, whatever has changed since."""
        return ("output", str(output)) in self._entries

    def add(self, records: Iterable[dict[str, Any]], digest: str, outputs: Iterable[Path]) -> None:
        """Add the outputs that records report as finished; errors and skipped outputs are left out."""
        paths = {str(path): path for path in outputs}
        for record in records:
            if record["error"] is None and record["status"] != "skipped":
                entry = {name: record[name] for name in ("input", "output", "status")}
                entry |= {"size": paths[entry["output"]].stat().st_size if entry["output"] else None, "digest": digest}
                self._remember(entry)
                with self.path.open("ab") as file:
                    file.write(_json(entry) + b"\n")
                    file.flush()
                    os.fsync(file.fileno())

    def _remember(self, entry: dict[str, Any]) -> None:
        key = ("input", entry["input"]) if entry["output"] is None else ("output", entry["output"])
        self._entries[key] = {name: entry[name] for name in ("status", "size", "digest")}


def _json(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True).encode()
