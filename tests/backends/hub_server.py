"""A local server that speaks as much of the hub's protocol as `huggingface_hub` needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds and what it was asked for.

    `cut` names files whose next download ends after half of the bytes, `dying` those of which every one does; `lost`
    names files that are listed and cannot be had, `forged` those whose content is not what their hash says, `barred`
    those that ask for a licence although their repository is open.
    """

    address: str
    repos: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    dying: set[str] = field(default_factory=set)
    forged: set[str] = field(default_factory=set)
    barred: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        path = self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if path.startswith("/api/models/"):
            return self._facts(hub, path.removeprefix("/api/models/"))
        repo, _, rest = path.strip("/").partition("/resolve/")
        _, _, name = rest.partition("/")
        if name in hub.repos.get(repo, {}) and name not in hub.lost:
            return self._file(hub, name, hub.repos[repo][name])
        return self._error(404, "EntryNotFound" if repo in hub.repos else "RepoNotFound")

    def _facts(self, hub: Hub, path: str) -> None:
        repo, _, revision = path.partition("/revision/")
        if repo in hub.gated:
            return self._error(403, "GatedRepo")
        if repo not in hub.repos:
            return self._error(401, "RepoNotFound")
        if revision not in ("", "main", "v1", COMMIT):
            return self._error(404, "RevisionNotFound")
        files = [{"rfilename": name} for name in hub.repos[repo]]
        return self._send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode(), {})

    def _file(self, hub: Hub, name: str, data: bytes) -> None:
        if name in hub.barred:
            return self._error(403, "GatedRepo")
        digest = hashlib.sha256(b"" if name in hub.forged else data).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        dying = name in hub.dying and self.command == "GET"
        wanted = self.headers.get("Range")
        if wanted:
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[begin:], headers, short=dying)
        short = name in hub.cut and self.command == "GET"
        hub.cut -= {name} if short else set()
        return self._send(200, data, headers, short=short or dying)

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, short: bool = False) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data)), "Content-Type": "text/plain"}.items():
            self.send_header(key, value)
        self.send_header("Connection", "close")  # a kept connection would outlive the server
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if short else data)


class _Server(ThreadingHTTPServer):
    hub: Hub
    daemon_threads = True


@contextmanager
def serving(repos: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """A hub on a free local port, holding repository -> file -> content."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", repos)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
