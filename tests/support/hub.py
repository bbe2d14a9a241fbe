"""A stand-in of a model hub on the loopback: a real HTTP server that answers huggingface_hub's client as the hub does.

What it serves: repository information, file listings, files with the headers that the client relies on (`x-repo-commit`, `etag`,
`x-linked-etag`, `x-linked-size`, ranges), large files by a redirect to another origin, private and gated repositories. What it can
do wrong: cut a transfer, damage a file, answer any status, answer like a web page.

    with StandInHub() as hub:
        commit = hub.add("org/model", {"config.json": b"{}", "model.safetensors": ...})
        materialise(parse(f"hf://org/model@{commit}", base=...), cache=..., hub=Hub(endpoint=hub.endpoint))
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".bin", ".parquet")  # what the hub keeps in its large file storage
_INFO = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Seen:
    """One request that reached the server."""

    method: str
    path: str
    host: str
    range: str | None
    authorization: str | None


@dataclass
class Repository:
    """The commits of one repository, newest last."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None  # private: only for this token
    gated: bool = False  # its files are for nobody here


class StandInHub:
    """The server; a context manager.

    Attributes:
        endpoint: address to be given as `hub.endpoint` or `HF_ENDPOINT`.
        requests: everything that was asked, in order.
        status: when set, the answer to every request.
        web_page: answer every request with HTML, as a captive portal does.
    """

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.status: int | None = None
        self.web_page = False
        self.stopped = False
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._cuts: dict[str, list[int]] = {}
        self._damaged: set[str] = set()
        hub = self

        class Handler(_Handler):
            def __init__(self, *arguments: object) -> None:
                self.hub = hub
                super().__init__(*arguments)  # type: ignore[arg-type]

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.storage = f"http://localhost:{self._server.server_port}"  # another origin, as the hub's storage is

    def __enter__(self) -> StandInHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Listen no more, and drop the connections that are kept alive."""
        self.stopped = True
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, files: dict[str, bytes], *, kind: str = "models", branch: str = "main") -> str:
        """Commit `files` to a branch (or tag) and return the commit."""
        content = json.dumps([repo, kind, sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items())])
        commit = hashlib.sha1(content.encode()).hexdigest()
        repository = self._repositories.setdefault((kind, repo), Repository())
        repository.commits[commit] = dict(files)
        repository.refs[branch] = commit
        return commit

    def protect(self, repo: str, *, token: str | None = None, gated: bool = False, kind: str = "models") -> None:
        """Make a repository private (only `token` may read it) or gated."""
        self._repositories[kind, repo].token = token
        self._repositories[kind, repo].gated = gated

    def cut(self, name: str, *after: int) -> None:
        """Break the next transfers of the file `name`, one for each number of bytes sent before the break."""
        self._cuts[name] = list(after)

    def damage(self, name: str) -> None:
        """Send other bytes than the listing promises, the next time `name` is asked for."""
        self._damaged.add(name)

    def ranges(self, name: str) -> list[str | None]:
        """The `Range` header of each transfer of the file `name`."""
        return [seen.range for seen in self.requests if seen.method == "GET" and unquote(seen.path).endswith("/" + name)]

    def find(self, kind: str, repo: str) -> Repository | None:
        """A repository, if there is one."""
        return self._repositories.get((kind, repo))

    def take_cut(self, name: str) -> int | None:
        """After how many bytes this transfer breaks."""
        cuts = self._cuts.get(name)
        return cuts.pop(0) if cuts else None

    def take_damage(self, name: str, data: bytes) -> bytes:
        """The bytes of a file as they are sent this time."""
        if name not in self._damaged:
            return data
        self._damaged.remove(name)
        return bytes(255 - byte for byte in data)


def etag(name: str, data: bytes) -> str:
    """What the hub tags a file with: SHA-256 of a large file, git's blob hash of a small one."""
    return hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, *arguments: object) -> None:
        """Say nothing; tests read `hub.requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.hub.stopped:
            self.close_connection = True
            return
        path = urlsplit(self.path).path
        headers = self.headers
        self.hub.requests.append(Seen(self.command, path, headers["Host"], headers["Range"], headers["Authorization"]))
        if self.hub.web_page:
            self._send(200, b"<html>please log in to this network</html>", {"Content-Type": "text/html"})
        elif self.hub.status is not None:
            self._send(self.hub.status, b"{}")
        elif match := _INFO.fullmatch(path):
            self._info(match[1], match[2], unquote(match[3] or "main"))
        elif match := _TREE.fullmatch(path):
            self._tree(match[1], match[2], unquote(match[3]))
        elif match := _FILE.fullmatch(path):
            self._file("datasets" if match[1] else "models", match[2], unquote(match[3]), unquote(match[4]))
        elif match := re.fullmatch(r"/storage/(models|datasets)/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
            repository = self.hub.find(match[1], match[2])
            assert repository is not None
            name = unquote(match[4])
            self._bytes(name, repository.commits[match[3]][name], {})
        else:
            self._send(404, b"{}")

    def _open(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files, or the hub's refusal."""
        repository = self.hub.find(kind, repo)
        if repository is None or (repository.token and self.headers["Authorization"] != f"Bearer {repository.token}"):
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
            return None
        return commit, repository.commits[commit]

    def _info(self, kind: str, repo: str, revision: str) -> None:
        if found := self._open(kind, repo, revision):
            commit, files = found
            siblings = [{"rfilename": name} for name in sorted(files)]
            self._json({"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def _tree(self, kind: str, repo: str, revision: str) -> None:
        if found := self._open(kind, repo, revision):
            self._json([_tree_entry(name, data) for name, data in sorted(found[1].items())])

    def _file(self, kind: str, repo: str, revision: str, name: str) -> None:
        found = self._open(kind, repo, revision)
        if found is None:
            return
        commit, files = found
        repository = self.hub.find(kind, repo)
        assert repository is not None
        if repository.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"})
        elif name not in files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit})
        elif name.endswith(LARGE):
            data = files[name]
            location = f"{self.hub.storage}/storage/{kind}/{repo}/{commit}/{name}"
            linked = {"X-Linked-Etag": f'"{etag(name, data)}"', "X-Linked-Size": str(len(data))}
            self._send(302, b"", {"X-Repo-Commit": commit, "Location": location, "ETag": '"of-the-pointer"', **linked})
        else:
            self._bytes(name, files[name], {"X-Repo-Commit": commit, "ETag": f'"{etag(name, files[name])}"'})

    def _bytes(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            start = int(match[1])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        sent = data if self.command == "HEAD" else self.hub.take_damage(name, data)
        self._send(206 if match else 200, sent[start:], headers, cut=None if self.command == "HEAD" else self.hub.take_cut(name))

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


def _tree_entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": etag(name, data), "size": len(data), "pointerSize": 134}
    return entry
