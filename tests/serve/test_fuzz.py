"""schemathesis, over the server's own OpenAPI page: whatever is sent, no answer is a 5xx."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.conftest import Server


@pytest.mark.slow
def test_no_request_ends_in_a_fault_of_the_server(server: Server, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("schemathesis")
    examples = os.environ.get("SCHEMATHESIS_EXAMPLES", "60")
    words = [str(command), "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error"]
    words += [
        "--max-examples",
        examples,
        "--phases",
        "examples,coverage,fuzzing",
        "--seed",
        "1",
        "--request-timeout",
        "30",
    ]
    words += ["--exclude-path", "/v1/unload_lora_adapter"]  # the other tests want theirs
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    server.wait_idle(60)
    assert "fault" not in server.said
