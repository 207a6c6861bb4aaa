"""Kaggle, the Hugging Face hub and a plain web server in small, on loopback.

Each holds one data set (the hub: or model) and keeps what it was asked:

    kaggle.files = {"trivia.csv": b"question,..."}; kaggle.version = 3
    kaggle.failures["GetDataset"] = [Reply(429)]   # the next answers to it; then it works again
    kaggle.seen[-1].headers["Authorization"]
"""

import base64
import hashlib
import io
import json
import ssl
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HANDLE = "owner/quiz-set"
TOKEN = "tkn_0123456789_secret"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Reply:
    """An answer. With `sent`, the connection breaks after so many bytes of the body.

    With `stalls` it does not break but stays open in silence; `silent` sends not even a status.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    length: bool = True
    stalls: bool = False
    silent: bool = False


SILENCE = Reply(silent=True)


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    method: str
    host: str
    path: str
    headers: Message
    body: bytes
    query: str = ""


@dataclass
class Host:
    """What all hosts have: files of one repository, failures to come, requests that came."""

    files: dict[str, bytes]
    failures: dict[str, list[Reply]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    port: int = 0
    closing: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: Seen) -> Reply:
        """Return the next failure that is due for a part of the path, or the real answer."""
        self.seen.append(request)
        for part, replies in self.failures.items():
            if part in request.path and replies:
                return replies.pop(0)
        return self.serve(request)

    def serve(self, request: Seen) -> Reply:
        raise NotImplementedError

    def asked(self, part: str) -> list[Seen]:
        return [request for request in self.seen if part in request.path]


@dataclass
class Kaggle(Host):
    """POST GetDataset and DownloadDataset; the latter redirects to the storage with the archive."""

    version: int | None = 3
    logins: tuple[str, ...] = (f"Bearer {TOKEN}",)

    def serve(self, request: Seen) -> Reply:
        if request.host == "storage.example":
            return Reply(body=self.archive(), headers=self.storage_headers())
        if request.headers.get("Authorization") not in self.logins:
            return kaggle_error(401, "Unauthenticated")
        asked = json.loads(request.body)
        if f"{asked['ownerSlug']}/{asked['datasetSlug']}" != HANDLE:
            return kaggle_error(404, "Dataset not found")
        if request.path.endswith("/datasets.DatasetApiService/GetDataset"):
            number = {} if self.version is None else {"currentVersionNumber": self.version}
            # The header with which Kaggle tells an old client that there is a newer one.
            return as_json({"ref": HANDLE, **number}, {"X-Kaggle-HubVersion": "99.0.0"})
        assert request.path.endswith("/datasets.DatasetApiService/DownloadDataset"), request.path
        if asked["datasetVersionNumber"] != self.version:
            return kaggle_error(404, "Dataset version not found")
        return Reply(302, headers={"Location": "http://storage.example/archive.zip?Signature=abc"})

    def archive(self) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in self.files.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    def storage_headers(self) -> dict[str, str]:
        digest = base64.b64encode(hashlib.md5(self.archive()).digest()).decode("ascii")
        return {"Content-Type": "application/zip", "x-goog-hash": f"md5={digest}"}


@dataclass
class Hub(Host):
    """The hub's API of one repository, and its files: small ones here, `large` ones at the CDN."""

    kind: str = "datasets"  # or "models", whose files have no such prefix
    large: tuple[str, ...] = ()
    needs_login: bool = False
    ranges: bool = True

    def serve(self, request: Seen) -> Reply:
        path = request.path
        if path.startswith("/cdn/"):
            return self._file(path.removeprefix("/cdn/"), request)
        if self.needs_login and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return hub_error(401, "GatedRepo", f"Access to {HANDLE} is restricted.")
        prefix = "" if self.kind == "models" else f"/{self.kind}"
        api, resolve = f"/api/{self.kind}/{HANDLE}", f"{prefix}/{HANDLE}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/v1", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            return as_json({"id": HANDLE, "sha": COMMIT, "siblings": siblings})
        if path.startswith(f"{api}/tree/{COMMIT}"):
            return self._tree(path.removeprefix(f"{api}/tree/{COMMIT}").strip("/"), request.query)
        if path.startswith(f"{api}/revision/") or path.startswith(f"{api}/tree/"):
            return hub_error(404, "RevisionNotFound", f"Invalid rev id: {path}")
        if path.startswith(resolve):
            name = path.removeprefix(resolve)
            if name not in self.files:
                return hub_error(404, "EntryNotFound", f"Entry not found: {name}")
            return self._redirect(name) if name in self.large else self._file(name, request)
        # The hub does not tell an anonymous stranger whether a data set exists.
        if "Authorization" in request.headers:
            return hub_error(404, "RepoNotFound", "Repository not found")
        return hub_error(401, "RepoNotFound", "Invalid username or password.")

    def _tree(self, folder: str, query: str) -> Reply:
        """The files below a folder, or only what lies in it: files and folders."""
        prefix = f"{folder}/" if folder else ""
        below = [name for name in self.files if name.startswith(prefix)]
        if not below:
            return hub_error(404, "EntryNotFound", f"{folder} does not exist")
        if "recursive=true" in query.lower():
            return as_json([self._entry(name) for name in below])
        tops = {name.removeprefix(prefix).partition("/")[::2]: name for name in below}
        files = [self._entry(name) for (_, rest), name in tops.items() if not rest]
        folders = sorted({prefix + top for top, rest in tops if rest})
        return as_json([*files, *({"type": "directory", "path": f, "oid": "0"} for f in folders)])

    def _entry(self, name: str) -> dict[str, object]:
        content = self.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}

    def _redirect(self, name: str) -> Reply:
        content = self.files[name]
        return Reply(
            302,
            headers={
                "Location": f"http://localhost:{self.port}/cdn/{name}",  # another host: no login
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
            },
        )

    def _file(self, name: str, request: Seen) -> Reply:
        content = self.files[name]
        headers = {"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": COMMIT}
        asked = request.headers.get("Range")
        if asked is None or not self.ranges:
            return Reply(body=content, headers=headers)
        first = int(asked.removeprefix("bytes=").rstrip("-"))
        headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return Reply(206, content[first:], headers)


@dataclass
class Web(Host):
    """Files by path, with an ETag unless `etags` says otherwise; paths that redirect."""

    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    etags: bool = True
    length: bool = True

    def serve(self, request: Seen) -> Reply:
        if request.path in self.redirects:
            return Reply(302, headers={"Location": self.redirects[request.path]})
        content = self.files.get(request.path)
        if content is None:
            return Reply(404, b"gone")
        etag = {"ETag": f'"{hashlib.md5(content).hexdigest()}"'} if self.etags else {}
        return Reply(body=content, headers={**etag, **self.headers}, length=self.length)


def as_json(value: object, headers: dict[str, str] | None = None, status: int = 200) -> Reply:
    body = json.dumps(value).encode()
    return Reply(status, body, {"Content-Type": "application/json", **(headers or {})})


def kaggle_error(status: int, message: str) -> Reply:
    return as_json({"code": status, "message": message}, status=status)


def hub_error(status: int, code: str, message: str) -> Reply:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    return as_json({"error": message}, headers, status)


def git_hash(content: bytes) -> str:
    """The id that git gives a file; the hub uses it as ETag of small files."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(host: Host, tls: ssl.SSLContext | None = None) -> Iterator[Host]:
    """Serve a host on a free port of loopback; as a proxy too, for any name it is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            target = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name = target.hostname or self.headers["Host"].partition(":")[0]
            request = Seen(self.command, name, target.path, self.headers, body, target.query)
            self.send(host.answer(request))

        do_GET = do_POST = do_HEAD = handle_one

        def send(self, reply: Reply) -> None:
            if reply.silent:
                host.closing.wait(60)
                return
            self.send_response(reply.status)
            length = {"Content-Length": str(len(reply.body))} if reply.length else {}
            for key, value in {**length, **reply.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: reply.sent])
                self.wfile.flush()
                if reply.stalls:
                    host.closing.wait(60)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        host.port = server.server_port
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield host
        finally:
            host.closing.set()
            server.shutdown()
            thread.join()
