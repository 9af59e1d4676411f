"""A small hub on this machine: the part of its HTTP interface that huggingface_hub calls."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository ``owner/name``: its files, what it does wrong, what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.name = "owner/name"
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.token: str | None = None
        self.breaks: dict[str, int] = {}  # path -> bytes after which the first answer stops
        self.always_breaks = False
        self.status: int | None = None
        self.url = ""

    def asked(self, method: str = "GET") -> list[str]:
        """The files that were asked for, in order."""
        found = (
            re.fullmatch(r"/owner/name/resolve/\w+/(.+)", p)
            for m, p, _ in self.requests
            if m == method
        )
        return [match[1] for match in found if match]

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, before ranges and breaks."""
        if self.status is not None:
            return self.status, {}, b"{}"
        if self.token is not None and authorization != f"Bearer {self.token}":
            if authorization is None:
                return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if found and found[1] != self.name:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if found and found[3] not in (None, "main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if found:
            data: Any = {"id": self.name, "sha": COMMIT, "private": False, "tags": []}
            if found[2] == "tree":
                data = [
                    {"type": "file", "path": name, "size": len(body), "oid": _oid(body)}
                    for name, body in self.files.items()
                ]
            return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()
        name = path.removeprefix(f"/{self.name}/resolve/{COMMIT}/")
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        body = self.files[name]
        return 200, {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": COMMIT}, body


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            wanted = self.headers.get("Range", "")
            hub.requests.append((self.command, path, wanted))
            status, headers, body = hub.answer(path, self.headers.get("Authorization"))
            if found := re.fullmatch(r"bytes=(\d+)-", wanted):
                start = int(found[1])
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
            cut = hub.breaks.get(name) if hub.always_breaks else hub.breaks.pop(name, None)
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve on a free port of this machine; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
