"""Who may ask, how much, how slowly; what happens to clients that leave or stall, and to a server that is to end."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests import tiny
from tests.serve.conftest import Server, Start

_TOKENIZER = tiny.make_tokenizer()
NO_END = {str(_TOKENIZER.convert_tokens_to_ids(token)): -100 for token in tiny.SPECIAL["qwen2"]}
LONG = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 2000,
    "temperature": 1,
    "seed": 3,
}
"""A request whose answer takes seconds: nothing ends it but its length."""


@pytest.fixture(scope="module")
def closed(start: Start, adapters: Path) -> Server:
    """A server with a key, small limits, two places and two in the queue."""
    return start(
        *("--served_model_name", "tiny", "--max_batch_size", "2", "--max_queue", "2", "--max_body_bytes", "20000"),
        *("--stall_seconds", "2", "--adapter_dirs", str(adapters), "--max_lora_rank", "16"),
        key="sk-right",
    )


def endless(server: Server) -> requests.Response:
    """A stream that has begun; ``close()`` it."""
    response = server.post("/v1/chat/completions", LONG | {"stream": True, "logit_bias": NO_END}, stream=True)
    assert response.status_code == 200
    assert response.raw.read(6) == b"data: "  # an iterator would close the stream when it is let go
    return response


@pytest.mark.parametrize("key", ["sk-wrong", "sk-righ", "sk-right2", "none", "é"])
def test_a_wrong_key_is_refused(closed: Server, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}".encode()}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        answer = requests.get(closed.url + path, headers=headers, timeout=10)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert requests.get(f"{closed.url}/v1/models", timeout=10).status_code == 401
    assert requests.get(f"{closed.url}/health", timeout=10).status_code == 200
    assert requests.get(f"{closed.url}/v1/models", headers=closed.headers, timeout=10).status_code == 200


def test_another_address_than_loopback_gets_a_key(start: Start) -> None:
    server = start(host="0.0.0.0")
    assert server.key is not None
    assert server.key.startswith("sk-")
    assert len(server.key) > 30
    assert requests.get(f"{server.url}/v1/models", timeout=10).status_code == 401
    assert [model.id for model in server.client.models.list()] == ["Tiny-Qwen2"]
    assert server.key not in server.said
    assert "#key=" not in (server.log / "out").read_text()
    assert server.stop(signal.SIGINT) == 130


def test_the_page_is_opened_with_the_key_that_was_made(start: Start) -> None:
    server = start(command="app", host="0.0.0.0")
    port = server.url.rpartition(":")[2]
    assert f"at http://0.0.0.0:{port}/#key={server.key}\n" in (server.log / "out").read_text()
    assert server.key
    assert server.key not in server.said
    assert server.stop() == 143


def test_a_page_from_elsewhere_cannot_use_a_server_without_a_key(server: Server) -> None:
    for host, status in (("evil.example", 403), ("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:8000", 200)):
        assert requests.get(f"{server.url}/v1/models", headers={"Host": host}, timeout=10).status_code == status
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
    simple = requests.post(
        f"{server.url}/v1/chat/completions", data=body, headers={"Content-Type": "text/plain"}, timeout=10
    )
    assert simple.status_code == 400
    assert "access-control-allow-origin" not in simple.headers


def test_large_and_slow_bodies_are_refused(closed: Server) -> None:
    assert closed.post("/v1/completions", {"prompt": "a" * 30000}).status_code == 413
    port = int(closed.url.rpartition(":")[2])
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-right\r\n"
    with socket.create_connection(("127.0.0.1", port)) as chunked:
        chunked.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"5000\r\n" + b"a" * 0x5000 + b"\r\n")
        assert b" 413 " in chunked.recv(100)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
        slow.sendall(head + b"Content-Length: 100\r\n\r\nabc")
        assert b" 408 " in slow.recv(100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"], ids=["head", "body"]
)
def test_nobody_keeps_a_connection_byte_by_byte(closed: Server, more: bytes) -> None:
    port = int(closed.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as pinned:
        pinned.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + more)
        pinned.settimeout(0.5)
        begun = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - begun < 15:
                try:
                    if not pinned.recv(4096):
                        break
                except TimeoutError:
                    pinned.sendall(b"a")
        assert 9 < time.monotonic() - begun < 13


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"nul", b'{"prompt": NaN}', b"[" * 9000, b"\xff\xfe", b'{"a":"\\ud800"}']
)
def test_rubbish_is_answered_with_400(closed: Server, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter"):
        answer = requests.post(
            closed.url + path, data=body, headers={**closed.headers, "Content-Type": "application/json"}, timeout=10
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
    for ask in (
        {"prompt": "\ud800"},
        {"prompt": [10**9]},
        {"prompt": "", "max_tokens": 1},
        {"prompt": "a", "seed": 1 << 70},
    ):
        assert closed.post("/v1/completions", ask).status_code == 400
    chat = {"messages": [{"role": "user", "content": "\ud800"}], "tools": [{"function": {"name": "a\ud800"}}]}
    assert closed.post("/v1/chat/completions", chat).status_code == 400


def test_a_client_that_leaves_frees_its_place(closed: Server) -> None:
    closed.wait_idle()
    endless(closed).close()
    closed.wait_idle(3)
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{closed.url}/v1/chat/completions", json=LONG | {"logit_bias": NO_END}, headers=closed.headers, timeout=0.5
        )
    closed.wait_idle(3)


def test_more_than_the_queue_holds_are_told_when_to_come_again(closed: Server) -> None:
    closed.wait_idle()
    streams = [endless(closed) for _ in range(4)]
    try:
        assert sum(closed.load()) == 4
        refused = closed.post("/v1/chat/completions", LONG)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.json()["error"]["type"] == "rate_limit_error"
    finally:
        for stream in streams:
            stream.close()
    closed.wait_idle()
    assert closed.post("/v1/chat/completions", LONG | {"max_tokens": 1}).status_code == 200


def test_a_reader_that_stalls_is_cut_off_and_holds_nobody_up(closed: Server) -> None:
    closed.wait_idle()
    port = int(closed.url.rpartition(":")[2])
    body = json.dumps(LONG | {"stream": True, "logprobs": True, "top_logprobs": 20, "n": 2, "logit_bias": NO_END})
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", port))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-right\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        stalled.sendall((head + body).encode())
        start = time.monotonic()
        assert closed.post("/v1/chat/completions", LONG | {"max_tokens": 5}).status_code == 200
        assert time.monotonic() - start < 30
        closed.wait_idle(60)


ROUTES = [
    "/etc",
    "../code",
    "code/../../code",
    "code/../../../../etc",
    "..",
    "",
    ".",
    "nothing",
    "code\0",
    "file:///etc",
    "escape",
    "linked_file",
    "~",
    "a/b" * 1000,
]


@pytest.mark.parametrize("path", ROUTES)
def test_no_path_leads_out_of_the_allowed_folders(closed: Server, adapters: Path, path: str) -> None:
    link = adapters / "escape"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc")
    partly = adapters / "linked_file"
    partly.mkdir(exist_ok=True)
    (partly / "adapter_config.json").unlink(missing_ok=True)
    (partly / "adapter_config.json").symlink_to("/etc/hostname")
    answer = closed.post("/v1/load_lora_adapter", {"lora_name": "bad", "lora_path": path})
    assert answer.status_code in (400, 403), answer.text
    assert "root:" not in answer.text
    assert [model.id for model in closed.client.models.list()] == ["tiny"]


def odd_adapter(folder: Path, good: Path, **changed: Any) -> Path:
    """A copy of an adapter with another configuration."""
    folder.mkdir(exist_ok=True)
    config = json.loads((good / "adapter_config.json").read_text()) | changed
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes((good / "adapter_model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    "changed",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"layer_replication": [[0, 100000]]},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "antigravity"}},
        {"init_lora_weights": "pissa"},
        {"peft_type": "PROMPT_TUNING"},
        {"r": 10**9},
        {"r": "8"},
        {"rank_pattern": {"q_proj": 10**9}},
    ],
)
def test_no_code_and_no_memory_bomb_reaches_the_loader(closed: Server, adapters: Path, changed: dict[str, Any]) -> None:
    odd_adapter(adapters / "odd", adapters / "code", **changed)
    answer = closed.post("/v1/load_lora_adapter", {"lora_name": "bad", "lora_path": "odd"})
    assert answer.status_code == 400, answer.text


def test_no_pickle_is_read(closed: Server, adapters: Path) -> None:
    folder = odd_adapter(adapters / "pickled", adapters / "code")
    trap = folder / "touched"
    pickle = b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle)
    assert closed.post("/v1/load_lora_adapter", {"lora_name": "bad", "lora_path": "pickled"}).status_code == 400
    (folder / "adapter_model.safetensors").write_bytes(pickle)
    assert closed.post("/v1/load_lora_adapter", {"lora_name": "bad", "lora_path": "pickled"}).status_code == 400
    assert not trap.exists()


@pytest.mark.parametrize("name", ["tiny", "", "a/b", "../x", "a b", "é", "a" * 65])
def test_an_adapters_name_is_plain_and_its_own(closed: Server, name: str) -> None:
    assert closed.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": "code"}).status_code == 400


def test_without_allowed_folders_nothing_is_loaded(start: Start, adapters: Path) -> None:
    server = start()
    body = {"lora_name": "code", "lora_path": str(adapters / "code")}
    assert server.post("/v1/load_lora_adapter", body).status_code == 403
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "code"}).status_code == 403
    assert server.stop() == 143


def test_a_server_that_is_to_end_finishes_what_runs(start: Start) -> None:
    server = start("--served_model_name", "tiny")
    chunks: list[str] = []

    def read() -> None:
        body = LONG | {"stream": True, "max_tokens": 400, "logit_bias": NO_END}
        with server.post("/v1/chat/completions", body, stream=True) as response:
            chunks.extend(line.decode() for line in response.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    while server.load() == (0, 0):
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises((openai.APIConnectionError, requests.ConnectionError)):
        server.client.models.list()
    reader.join(60)
    assert server.process.wait(30) == 143
    assert chunks[-1] == "data: [DONE]"
    assert json.loads(chunks[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert "Traceback" not in server.said


def test_an_end_waits_no_longer_than_it_may(start: Start) -> None:
    server = start("--served_model_name", "tiny", "--stop_seconds", "1")
    response = endless(server)
    begun = time.monotonic()
    assert server.stop() == 143
    assert time.monotonic() - begun < 10
    response.close()
    assert "Traceback" not in server.said


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(AssertionError, match="in use.*another port"):
        start("--port", str(taken.getsockname()[1]))
