"""A Hub for tests: what huggingface_hub's client asks of huggingface.co, answered from memory on the loopback.

Repositories have commits, branches and pull requests; large files go through Git LFS, in one piece or in parts, and
are served by redirects, small ones travel in the commit. Writing and reading what is private take the token.
"""

import base64
import hashlib
import itertools
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_loopback"
USER = "user"
_LARGE = 1_000_000  # bytes from which a file is stored by LFS, as it is with one of the suffixes
_LARGE_SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")
_PART = 700_000  # bytes of a part; files that are larger are sent in parts


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit."""

    oid: str  # sha256 of an LFS file, git's sha1 of any other
    size: int
    is_lfs: bool


@dataclass
class Commit:
    """A commit: all files, and what it says of itself."""

    sha: str
    parent: str | None
    files: dict[str, StoredFile]
    message: str


@dataclass
class Repository:
    """A model repository."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, StoredFile], message: str) -> Commit:
        parent = self.refs.get(ref) or self.refs.get("main")
        content = json.dumps([parent, sorted((p, f.oid) for p, f in files.items()), message, len(self.commits)])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, files, message)
        self.refs[ref] = sha
        return self.commits[sha]

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        history, commit = [], self.find(revision)
        while commit is not None:
            history.append(commit)
            commit = self.commits.get(commit.parent or "")
        return history


class Hub:
    """The state of the server, and what it was asked.

    Attributes:
        drop_lfs_after: cut the connection when so many bytes of an LFS file have arrived, every time.
        drop_commit: cut the connection when a commit has arrived, before it counts.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.drop_lfs_after: int | None = None
        self.drop_commit = False
        self.endpoint = ""
        self.lock = threading.Lock()

    def count(self, method: str, pattern: str) -> int:
        """How many requests were made by this method to a path in which the pattern is found."""
        return sum(1 for asked, path in self.requests if asked == method and re.search(pattern, path))

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        commit = self.repositories[repo_id].find(revision)
        assert commit is not None
        return self.objects[commit.files[path].oid]


@contextmanager
def run_hub() -> Iterator[Hub]:
    """A hub that listens for as long as the context lasts."""
    hub = Hub()
    handler = type("HubHandler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _ApiError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **content: Any):
        super().__init__(message)
        self.status, self.code, self.content = status, code, content


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _card_metadata(text: str) -> dict[str, Any]:
    match = re.match(r"\A---\n(.*?)\n---\n", text, flags=re.DOTALL)
    return (yaml.safe_load(match[1]) or {}) if match else {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/repos/create", "create_repository"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)", "create_branch"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs", "list_refs"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "list_tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", "model_info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", "model_info"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", "lfs_upload"),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", "lfs_complete"),
        ("POST", r"/lfs/verify", "lfs_verify"),
        ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("HEAD", r"/cdn/(?P<oid>[0-9a-f]+)", "serve_object"),
        ("GET", r"/cdn/(?P<oid>[0-9a-f]+)", "serve_object"),
    )

    # the server's plumbing

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body_left = int(self.headers.get("Content-Length") or 0)
        with self.hub.lock:
            self.hub.requests.append((self.command, url.path))
        try:
            for method, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, url.path)
                if method == self.command and match:
                    values = {k: None if v is None else unquote(v) for k, v in match.groupdict().items()}
                    getattr(self, name)(**values)
                    return
            raise _ApiError(404, f"this hub knows no {self.command} {url.path}")
        except _ApiError as error:
            headers = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
            self._send_json({"error": str(error), **error.content}, error.status, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        body, self.body_left = self.rfile.read(self.body_left), 0
        return body

    def _json(self) -> Any:
        return json.loads(self._body())

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.body_left:  # an error before the body was read: the connection cannot be used again
            self.close_connection = True
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _cut_connection(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _require_token(self) -> None:
        if not self._has_token():
            raise _ApiError(401, "Invalid username or password.")

    def _repository(self, repo: str) -> Repository:
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and not self._has_token()):
            raise _ApiError(404, "Repository not found", "RepoNotFound")
        return repository

    def _commit_of(self, repo: str, revision: str | None) -> Commit:
        commit = self._repository(repo).find(revision or "main")
        if commit is None:
            raise _ApiError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # what is asked of a hub

    def whoami(self) -> None:
        self._require_token()
        self._send_json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def validate_card(self) -> None:
        request = self._json()
        try:
            metadata = _card_metadata(request["content"])
            problems = [] if isinstance(metadata, dict) else ["metadata is no mapping"]
            for entry in metadata.get("model-index") or []:
                problems += [f"model-index: no {name}" for name in ("name", "results") if name not in entry]
        except yaml.YAMLError as error:
            problems = [str(error)]
        content = {"errors": [{"message": problem} for problem in problems], "warnings": []}
        self._send_json(content, 400 if problems else 200)

    def create_repository(self) -> None:
        self._require_token()
        request = self._json()
        repo = f"{request.get('organization') or USER}/{request['name']}"
        url = f"{self.hub.endpoint}/{repo}"
        if repo in self.hub.repositories:
            raise _ApiError(409, "You already created this model repo", url=url)
        repository = self.hub.repositories[repo] = Repository(request.get("visibility") == "private")
        repository.commit("main", {}, "initial commit")
        self._send_json({"url": url, "name": repo})

    def preupload(self, repo: str, revision: str) -> None:
        self._require_token()
        request = self._json()
        commit = self._commit_of(repo, revision)
        files = []
        for asked in request["files"]:
            path = asked["path"]
            is_large = asked["size"] >= _LARGE or path.endswith(_LARGE_SUFFIXES)
            known = commit.files.get(path)
            answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            files.append({**answer, **({"oid": known.oid} if known else {})})
        self._send_json({"files": files})

    def lfs_batch(self, repo: str) -> None:
        self._require_token()
        request = self._json()
        self._repository(repo)
        assert request["operation"] == "upload" and request["hash_algo"] == "sha256"
        answers = []
        for wanted in request["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                base = f"{self.hub.endpoint}/lfs/{oid}"
                upload: dict[str, Any] = {"href": base}
                if size > _PART:
                    parts = {str(n + 1): f"{base}/{n + 1}" for n in range(-(-size // _PART))}
                    upload = {"href": f"{base}/complete", "header": {"chunk_size": str(_PART), **parts}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/lfs/verify"}}
            answers.append(answer)
        self._send_json({"transfer": "basic", "objects": answers})

    def lfs_upload(self, oid: str, part: str | None) -> None:
        limit = self.hub.drop_lfs_after
        if limit is not None:
            self.rfile.read(min(limit, self.body_left))
            self._cut_connection()
            return
        content = self._body()
        if part is None:
            self._store(oid, content)
        else:
            with self.hub.lock:
                self.hub.parts.setdefault(oid, {})[int(part)] = content
        self._send(b"", headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    def lfs_complete(self, oid: str) -> None:
        request = self._json()
        parts = self.hub.parts.pop(oid, {})
        content = b"".join(parts[number] for number in sorted(parts))
        assert [entry["partNumber"] for entry in request["parts"]] == sorted(parts)
        self._store(oid, content)
        self._send_json({})

    def _store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise _ApiError(400, "the content is not that of the oid")
        self.hub.objects[oid] = content

    def lfs_verify(self) -> None:
        request = self._json()
        if len(self.hub.objects.get(request["oid"], b"")) != request["size"]:
            raise _ApiError(404, "no such object")
        self._send_json({})

    def commit(self, repo: str, revision: str) -> None:
        self._require_token()
        lines = [json.loads(line) for line in self._body().splitlines()]
        if self.hub.drop_commit:
            self._cut_connection()
            return
        repository, parent = self._repository(repo), self._commit_of(repo, revision)
        header = lines[0]["value"]
        if header.get("parentCommit", parent.sha) != parent.sha:
            raise _ApiError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                files[path] = StoredFile(_git_oid(content), len(content), is_lfs=False)
                self.hub.objects[files[path].oid] = content
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _ApiError(400, f"LFS object {value['oid']} of {path} was not uploaded")
                files[path] = StoredFile(value["oid"], len(self.hub.objects[value["oid"]]), is_lfs=True)
            elif line["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    raise _ApiError(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise _ApiError(400, f"this hub knows no operation {line['key']}")
        with self.hub.lock:
            answer, ref = {}, revision
            if self.query.get("create_pr") == ["1"]:
                number = next(n for n in itertools.count(1) if f"refs/pr/{n}" not in repository.refs)
                ref = f"refs/pr/{number}"
                answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{number}"
            commit = repository.commit(ref, files, header["summary"])
        answer |= {"commitOid": commit.sha, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit.sha}"}
        self._send_json({"success": True, **answer})

    def create_branch(self, repo: str, branch: str) -> None:
        self._require_token()
        request = json.loads(self._body() or b"{}")
        repository = self._repository(repo)
        if branch in repository.refs:
            raise _ApiError(409, "Reference already exists")
        repository.refs[branch] = self._commit_of(repo, request.get("startingPoint")).sha
        self._send_json({})

    def list_refs(self, repo: str) -> None:
        refs = self._repository(repo).refs
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in refs.items()
            if not name.startswith("refs/")
        ]
        self._send_json({"branches": branches, "tags": [], "converts": []})

    def list_tree(self, repo: str, revision: str, path: str | None) -> None:
        files = self._commit_of(repo, revision).files
        recursive = self.query.get("recursive") in (["True"], ["true"], ["1"])
        prefix = f"{path}/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, stored in sorted(files.items()):
            if not name.startswith(prefix):
                continue
            first, _, rest = name.removeprefix(prefix).partition("/")
            if rest:
                entries.setdefault(prefix + first, {"type": "directory", "path": prefix + first, "oid": "0" * 40})
            if not rest or recursive:
                entry: dict[str, Any] = {"type": "file", "path": name, "size": stored.size, "oid": stored.oid}
                if stored.is_lfs:
                    entry["lfs"] = {"oid": stored.oid, "size": stored.size, "pointerSize": 130}
                entries[name] = entry
        if path and not entries:
            raise _ApiError(404, f"{path} does not exist", "EntryNotFound")
        self._send_json(list(entries.values()))

    def model_info(self, repo: str, revision: str | None = None) -> None:
        commit = self._commit_of(repo, revision)
        card = commit.files.get("README.md")
        metadata = _card_metadata(self.hub.objects[card.oid].decode()) if card else {}
        self._send_json(
            {
                "_id": "0",
                "id": repo,
                "modelId": repo,
                "sha": commit.sha,
                "private": self._repository(repo).private,
                "tags": metadata.get("tags", []),
                "pipeline_tag": metadata.get("pipeline_tag"),
                "library_name": metadata.get("library_name"),
                "cardData": metadata,
                "siblings": [{"rfilename": name} for name in sorted(commit.files)],
            }
        )

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self._commit_of(repo, revision)
        headers = {"X-Repo-Commit": commit.sha}
        stored = commit.files.get(path)
        if stored is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(b"Entry not found", 404, headers)
            return
        if stored.is_lfs:
            headers |= {"X-Linked-Etag": f'"{stored.oid}"', "X-Linked-Size": str(stored.size)}
            # another host, as with the Hub: the client keeps the headers of the answer that leaves the one it asked
            location = f"{self.hub.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{stored.oid}"
            self._send(b"", 302, {**headers, "Location": location})
            return
        self._send_range(self.hub.objects[stored.oid], {**headers, "ETag": f'"{stored.oid}"'})

    def serve_object(self, oid: str) -> None:
        self._send_range(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _send_range(self, content: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._send(content, 200, {"Accept-Ranges": "bytes", **headers})
            return
        start, end = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(content[start : end + 1], 206, headers)
