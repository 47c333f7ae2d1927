"""A Hub on this machine: the part of its HTTP protocol that loading, publishing and tagging models needs.

Files ending in .safetensors, .onnx and .bin are large files (LFS), as on the real Hub; Xet is not supported. All is in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


def sha1(*parts: bytes) -> str:
    return hashlib.sha1(b"\0".join(parts)).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".onnx", ".bin"))


def read_folder(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass
class Repository:
    """Commits by hash, and the branches and tags that point to them."""

    name: str
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files) -> str:
        """Put a commit on main."""
        previous = self.branches.get("main", "")
        listing = [f"{path}:{sha1(content)}".encode() for path, content in sorted(files.items())]
        name = sha1(previous.encode(), *listing)
        self.commits[name], self.branches["main"] = files, name
        return name

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a hash means."""
        name = self.branches.get(revision) or self.tags.get(revision) or revision
        return name if name in self.commits else None


class Hub(ThreadingHTTPServer):
    """Holds `repositories`, knows one `token`, and remembers `requests` as "METHOD path"."""

    daemon_threads = True
    token = "hf_of_the_tests"

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, folder: Path, gated: bool = False, **changed: bytes | None) -> Repository:
        """A repository of one commit; `changed` replaces or, with `None`, removes files."""
        files = {path: content for path, content in (read_folder(folder) | changed).items() if content is not None}
        repository = self.repositories[name] = Repository(name, gated)
        repository.commit(files)
        return repository

    def downloads(self) -> list[str]:
        """Paths of the files that were fetched since the last call."""
        fetched = [request.split("/", 5)[-1] for request in self.requests if re.match(r"GET /[^/]+/[^/]+/resolve/", request)]
        self.requests.clear()
        return fetched


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub that serves for a while."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    routes = (
        ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "upload"),
        ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/tag/(?P<revision>[^/]+)", "tag"),
    )

    def log_message(self, *arguments):
        pass

    def answer(self):
        self.path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method = "GET" if self.command == "HEAD" else self.command
        matches = ((action, re.fullmatch(path, self.path)) for wanted, path, action in self.routes if wanted == method)
        action, found = next((match for match in matches if match[1]), (None, None))
        if found is None:
            return self.fail(404, "NotImplemented", f"{self.command} {self.path} is not spoken here")
        parts = {key: unquote(value) for key, value in found.groupdict(default="main").items()}
        if method == "POST" and not self.is_known:  # links to upload to are signed, so as not to need the token
            return self.fail(401, "Unauthorized", "Invalid username or password.")
        if "name" in parts:
            repository = self.server.repositories.get(parts.pop("name"))
            if repository is None:
                return self.fail(404 if self.is_known else 401, "RepoNotFound", "Repository not found")
            parts["repository"] = repository
        if method == "GET" and parts.get("revision", "main") != "main" and not repository.resolve(parts["revision"]):
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {parts['revision']}")
        getattr(self, f"do_{action}")(**parts)

    do_HEAD = do_GET = do_POST = do_PUT = answer

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def reply(self, content: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply_json(self, data, status: int = 200):
        self.reply(json.dumps(data).encode(), status, Content_Type="application/json")

    def fail(self, status: int, code: str, message: str):
        self.reply(json.dumps({"error": message}).encode(), status, X_Error_Code=code, X_Error_Message=message)

    # Reading

    def do_info(self, repository: Repository, revision: str):
        commit = repository.resolve(revision)
        siblings = [{"rfilename": path} for path in repository.commits.get(commit, {})]
        self.reply_json(
            {"id": repository.name, "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        )

    def do_tree(self, repository: Repository, revision: str):
        entries = []
        for path, content in repository.commits.get(repository.resolve(revision), {}).items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": sha1(content)}
            if is_large(path):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self.reply_json(entries)

    def do_refs(self, repository: Repository):
        def listed(kind, references):
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": to} for name, to in references.items()]

        self.reply_json(
            {"branches": listed("heads", repository.branches), "tags": listed("tags", repository.tags), "converts": []}
        )

    def do_file(self, repository: Repository, revision: str, path: str):
        if repository.gated and not self.is_known:
            return self.fail(401, "GatedRepo", "Access to this model is restricted.")
        commit = repository.resolve(revision)
        content = repository.commits.get(commit, {}).get(path)
        if content is None:
            return self.fail(404, "EntryNotFound", "Entry not found")
        etag = sha256(content) if is_large(path) else sha1(content)
        self.reply(content, ETag=f'"{etag}"', X_Repo_Commit=commit, X_Linked_Size=str(len(content)))

    # Writing

    def do_create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(name))
        self.reply_json({"url": f"{self.server.url}/{name}", "name": name}, status)

    def do_validate(self):
        self.reply_json({"errors": [], "warnings": []})

    def do_preupload(self, repository: Repository, revision: str):
        files = json.loads(self.body)["files"]
        for file in files:
            file |= {"uploadMode": "lfs" if is_large(file["path"]) else "regular", "shouldIgnore": False}
        self.reply_json({"files": files})

    def do_batch(self, repository: Repository):
        objects = json.loads(self.body)["objects"]
        for thing in objects:
            if thing["oid"] not in self.server.uploads:
                thing["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{thing['oid']}"}}
        self.reply_json({"transfer": "basic", "objects": objects})

    def do_upload(self, oid: str):
        if sha256(self.body) != oid:
            return self.fail(400, "BadRequest", "The content has another hash.")
        self.server.uploads[oid] = self.body
        self.reply(b"")

    def do_commit(self, repository: Repository, revision: str):
        files = dict(repository.commits.get(repository.resolve(revision), {}))
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.uploads[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repository.commit(files)
        url = f"{self.server.url}/{repository.name}/commit/{commit}"
        self.reply_json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def do_tag(self, repository: Repository, revision: str):
        tag = json.loads(self.body)["tag"]
        if tag in repository.tags:
            return self.fail(409, "Conflict", "Tag reference exists already")
        repository.tags[tag] = repository.resolve(revision)
        self.reply_json({})
