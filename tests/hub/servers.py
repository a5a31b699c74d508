"""A small server that speaks enough of ModelScope and of Hugging Face for their client libraries to fetch from it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Repos = dict[str, dict[str, bytes]]
"""Files by path, by ``models/org/name`` or ``datasets/org/name``."""


class HubServer(ThreadingHTTPServer):
    """Serves ``repos`` in both dialects, and counts the downloads of each file."""

    daemon_threads = True

    def __init__(self, repos: Repos) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.served: Counter[str] = Counter()
        self.broken: set[str] = set()
        """Files whose download is refused with a 403."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(repos: Repos) -> Iterator[HubServer]:
    with HubServer(repos) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = unquote(url.path).strip("/").split("/")
        if parts == [""]:
            self._send(200, b"a hub")
        elif parts[:2] == ["api", "v1"]:
            self._modelscope(parts[2:], query)
        elif parts[0] == "api":
            self._huggingface_api(parts[1:])
        else:
            self._huggingface_file(parts)

    def _modelscope(self, parts: list[str], query: dict[str, str]) -> None:
        files = self.server.repos.get("/".join(parts[:3]))
        if files is None or query.get("Revision", "master") != "master":
            self._send(404, json.dumps({"Code": 10010205001, "Message": "no such repository"}).encode())
        elif parts[3:] in (["repo", "files"], ["repo", "tree"]):
            listed = [
                {
                    "Path": path,
                    "Name": path,
                    "Type": "blob",
                    "Size": len(data),
                    "Sha256": hashlib.sha256(data).hexdigest(),
                }
                for path, data in files.items()
            ]
            self._send(200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode())
        elif parts[3:] == ["repo"]:
            self._send_file(query["FilePath"], files[query["FilePath"]], {})
        else:
            self._send(200, json.dumps({"Code": 200, "Success": True, "Data": {"Name": parts[2]}}).encode())

    def _huggingface_api(self, parts: list[str]) -> None:
        files = self.server.repos.get("/".join(parts[:3]))
        revision = parts[4] if len(parts) > 4 else "main"
        if files is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif parts[3:4] == ["tree"]:
            tree = [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for p, d in files.items()
            ]
            self._send(200, json.dumps(tree).encode())
        else:
            info = {"id": "/".join(parts[1:3]), "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
            self._send(200, json.dumps(info).encode())

    def _huggingface_file(self, parts: list[str]) -> None:
        if parts[0] != "datasets":
            parts = ["models", *parts]
        path = "/".join(parts[5:])
        data = self.server.repos["/".join(parts[:3])][path]
        self._send_file(path, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _send_file(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        if path in self.server.broken:
            self._send(403, b'{"Message": "not for you"}')
            return
        if self.command == "GET":
            self.server.served[path] += 1
        self._send(200, data, headers)

    def _send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
