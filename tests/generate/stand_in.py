"""Something that starts where vLLM would, for tests of what it is told and of its end. It writes no answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

_SCRIPT = """
import json, sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

if sys.argv[1] == "-I":  # the question whether this Python has vLLM
    sys.exit()
Path(__file__).with_suffix(".json").write_text(json.dumps(sys.argv[3:]))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.tell({"data": [{"max_model_len": 512}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.tell({})

    def tell(self, value):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_):
        pass


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


Server(sys.argv[-1], Handler).serve_forever()
"""


def stand_in(folder: Path) -> Path:
    """A Python, as ``--vllm_python`` takes one."""
    python = folder / "python"
    python.write_text(f"#!{sys.executable}{_SCRIPT}")
    python.chmod(0o755)
    return python


def words_of(python: Path) -> list[str]:
    """What it was told when it was started."""
    words: list[str] = json.loads(python.with_suffix(".json").read_text())
    return words
