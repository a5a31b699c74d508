"""The judge against a real server that answers well, badly, or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from swiftune.errors import RunError, UsageError
from swiftune.tasks.judge import RemoteJudge
from swiftune.tasks.task import Question

QUESTION = Question("0", [{"role": "user", "content": "Capital of France?"}], "Paris")
Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


def said(text: str) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@contextmanager
def judging(
    answer: Answer, *, missing: int = 0, stall: float = 0
) -> Iterator[tuple[RemoteJudge, list[dict[str, Any]]]]:
    """A judge at work, and what it was asked. ``missing``: bytes that it does not send, closing after ``stall`` s."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"path": self.path, "authorization": self.headers.get("Authorization")})
            status, content = answer(body)
            try:
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/")
                if missing:
                    self.send_header("Content-Length", str(len(content) + missing))
                self.end_headers()
                self.wfile.write(content)
                time.sleep(stall)
            except OSError:
                return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield RemoteJudge(f"http://127.0.0.1:{server.server_address[1]}/v1", "j", seconds=1, pause=0.01), asked
        finally:
            server.shutdown()
            thread.join()


def test_a_rating_becomes_a_percentage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "k")
    with judging(lambda _: said("It is right. [[9]]")) as (judge, asked):
        assert judge(QUESTION, "Paris!").scores == {"judge": [90.0]}
    (request,) = asked
    assert request["path"] == "/v1/chat/completions"
    assert request["authorization"] == "Bearer k"
    assert request["model"] == "j"
    for text in ("Capital of France?", "Paris!", "<reference>\nParis"):
        assert text in request["messages"][0]["content"]


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}', said("great!")[1]]
)
def test_rubbish_is_no_rating_and_five_times_an_error(content: bytes) -> None:
    with judging(lambda _: (200, content)) as (judge, asked):
        for _ in range(4):
            assert judge(QUESTION, "x").scores == {}
        assert len(asked) == 12
        with pytest.raises(RunError, match="no rating for 5 questions in a row"):
            judge(QUESTION, "x")


def test_a_rating_beyond_the_scale_is_none() -> None:
    with judging(lambda _: said("[[99]]")) as (judge, _):
        assert judge(QUESTION, "x").scores == {}


def test_a_judge_that_stumbles_is_asked_again() -> None:
    replies = iter([(500, b"busy"), (429, b"slow down"), said("[[3]]")])
    with judging(lambda _: next(replies)) as (judge, _):
        assert judge(QUESTION, "x").scores == {"judge": [30.0]}


def test_a_judge_that_does_not_answer_is_told() -> None:
    with judging(lambda _: (time.sleep(1.5), said("[[3]]"))[1]) as (judge, _):
        judge.seconds = 0.2
        with pytest.raises(RunError, match="no answer in time"):
            judge(QUESTION, "x")
    with pytest.raises(RunError, match="cannot be asked"):
        RemoteJudge("http://127.0.0.1:9/v1", "j", pause=0.01)(QUESTION, "x")


@pytest.mark.parametrize(("stall", "told"), [(0, "cannot be asked: ProtocolError"), (0.5, "no answer in time")])
def test_a_judge_that_stops_in_the_middle_is_told(stall: float, told: str) -> None:
    with judging(lambda _: said("[[3]]"), missing=9, stall=stall) as (judge, asked):
        judge.seconds = 0.2
        with pytest.raises(RunError, match=told):
            judge(QUESTION, "x")
        assert len(asked) == 3


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_is_told_at_once(status: int) -> None:
    with judging(lambda _: (status, b"no such model")) as (judge, asked):
        with pytest.raises(UsageError, match=f"{status}: no such model"):
            judge(QUESTION, "x")
        assert len(asked) == 1


def test_the_key_follows_no_redirect() -> None:
    with judging(lambda _: (302, b"")) as (judge, _), pytest.raises(RunError, match="302"):
        judge(QUESTION, "x")


def test_an_answer_without_end_is_cut_off() -> None:
    with judging(lambda _: (200, b"x" * (8 << 20))) as (judge, _):
        assert judge(QUESTION, "x").scores == {}
