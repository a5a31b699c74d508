"""Uploads with Hugging Face's client library, in a process of its own, to a server that speaks as the hub does."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_secret"


class Server(ThreadingHTTPServer):
    """Takes what is committed to it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.summary = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._send(200, {})

    def do_GET(self) -> None:
        self._send(200, {"id": "org/name", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "no token"})
        elif self.path.endswith("/repos/create"):
            asked = json.loads(body)  # older clients say "private", newer ones "visibility"
            self.server.private = asked.get("private", asked.get("visibility") == "private")
            self._send(200, {"url": f"{self.server.url}/org/name", "name": "org/name"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                else:
                    self.server.summary = line["value"]["summary"]
            self._send(200, {"commitUrl": f"{self.server.url}/org/name/commit/0", "commitOid": "0" * 40})
        else:
            self._send(200, {})

    def _send(self, code: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def push(url: str, folder: Path, home: Path, token: str = TOKEN, **options: Any) -> subprocess.CompletedProcess[str]:
    code = (
        "import json, sys; from pathlib import Path\n"
        "from swiftune import hub; from swiftune.errors import SwiftuneError\n"
        "folder, options = sys.argv[1], json.loads(sys.argv[2])\n"
        "try: print(hub.push_folder(Path(folder), 'org/name', message='Hello', **options))\n"
        "except SwiftuneError as error: sys.exit(str(error))\n"
    )
    env = {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "HF_ENDPOINT": url,
        "MODELSCOPE_ENDPOINT": url,
        "HF_TOKEN": token,
    }
    words = [sys.executable, "-c", code, str(folder), json.dumps({"private": False} | options)]
    env["PYTHONPATH"] = ":".join(filter(None, sys.path))
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=60)


def test_a_folder_arrives_whole(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    files = {
        "config.json": b"{}",
        "model.safetensors": b"weights" * 100,
        "args.json": b"{}",
        "optimizer.safetensors": b"o",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    done = push(server.url, folder, tmp_path, use_hf=True, private=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{server.url}/org/name"
    assert server.files == files
    assert (server.private, server.summary) == (True, "Hello")
    server.files.clear()
    assert push(server.url, folder, tmp_path, use_hf=True, patterns=["config.json", "args.json"]).returncode == 0
    assert set(server.files) == {"config.json", "args.json"}


def test_a_hub_that_refuses_or_is_not_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = push(server.url, tmp_path / "model", tmp_path, token="hf_wrong", use_hf=True)
    assert done.returncode == 1
    assert "could not be uploaded to org/name on Hugging Face" in done.stderr
    assert "Is HF_TOKEN set to a token that may write there?" in done.stderr
    done = push("http://127.0.0.1:9", tmp_path / "model", tmp_path, use_hf=False)
    assert done.returncode == 1
    assert "ModelScope (http://127.0.0.1:9" in done.stderr
    assert "did not answer" in done.stderr
