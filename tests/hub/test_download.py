"""Downloads with the hubs' client libraries, each run in a process of its own: they read their settings at import."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.servers import COMMIT, HubServer, serving

FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"s" * 5000,
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"again",
    "onnx/model.onnx": b"onnx",
}
FETCHED = {"config.json", "tokenizer.json", "model.safetensors"}
TABLES = {"README.md": b"# read me", "data/train.jsonl": b'{"a": 1}\n', "image.png": b"png"}
REPOS = {
    "models/org/model": FILES,
    "models/org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "datasets/org/rows": TABLES,
}
HUBS = pytest.mark.parametrize("use_hf", [False, True], ids=["modelscope", "huggingface"])


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving(REPOS) as server:
        yield server


class Finder:
    """Runs find_model or find_dataset in a new process, with this server for both hubs and empty caches."""

    def __init__(self, url: str, home: Path) -> None:
        self.home = home
        self.env = {
            "HOME": str(home),
            "PATH": "/usr/bin:/bin",
            "HF_ENDPOINT": url,
            "MODELSCOPE_ENDPOINT": url,
            "MODELSCOPE_CACHE": str(home / "modelscope"),
            "HF_HOME": str(home / "huggingface"),
            "SWIFTUNE_CACHE": str(home / "swiftune"),
            "MODELSCOPE_API_MAX_RETRIES": "1",
            "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "1",
        }

    def start(self, name: str, *, kind: str = "model", **options: object) -> subprocess.Popen[str]:
        code = (
            "import json, sys, swiftune.hub as hub; from swiftune.errors import SwiftuneError\n"
            "kind, name, options = json.loads(sys.argv[1])\n"
            "try: print('found', getattr(hub, 'find_' + kind)(name, **options))\n"
            "except SwiftuneError as error: print(type(error).__name__, error)\n"
        )
        words = [sys.executable, "-c", code, json.dumps([kind, name, options])]
        return subprocess.Popen(words, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def answer(self, running: subprocess.Popen[str]) -> str:
        out, err = running.communicate(timeout=60)
        assert running.returncode == 0, err
        return out.strip()

    def __call__(self, name: str, *, kind: str = "model", **options: object) -> str:
        return self.answer(self.start(name, kind=kind, **options))

    def folder(self, name: str, *, kind: str = "model", **options: object) -> Path:
        said = self(name, kind=kind, **options)
        assert said.startswith("found "), said
        return Path(said.removeprefix("found "))


@pytest.fixture
def find(server: HubServer, tmp_path: Path) -> Finder:
    return Finder(server.url, tmp_path)


def files_in(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@HUBS
def test_a_model_comes_without_pickles_and_is_not_fetched_twice(find: Finder, server: HubServer, use_hf: bool) -> None:
    folder = find.folder("org/model", use_hf=use_hf)
    assert files_in(folder) == FETCHED
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert folder.is_relative_to(find.home / ("huggingface" if use_hf else "modelscope"))
    server.shutdown()  # found in its cache from now on, whichever hub it came from
    assert find.folder("org/model", use_hf=not use_hf) == folder
    assert set(server.served.values()) == {1}


@HUBS
def test_a_data_set_comes_with_its_tables(find: Finder, use_hf: bool) -> None:
    folder = find.folder("org/rows", kind="dataset", use_hf=use_hf)
    assert files_in(folder) == {"data/train.jsonl"}


@HUBS
def test_two_processes_fetch_once(find: Finder, server: HubServer, use_hf: bool) -> None:
    both = [find.start("org/model", use_hf=use_hf) for _ in range(2)]
    first, second = (find.answer(each) for each in both)
    assert first == second
    assert first.startswith("found ")
    assert server.served == dict.fromkeys(FETCHED, 1)


@HUBS
def test_a_part_is_not_taken_for_the_whole(find: Finder, server: HubServer, use_hf: bool) -> None:
    server.broken = {"tokenizer.json"}
    assert find("org/model", use_hf=use_hf).startswith("DownloadError The model org/model could not be fetched from")
    find.env["HF_HUB_OFFLINE"] = "1"
    assert ": a download of it that was not finished" in find("org/model", use_hf=use_hf)
    del find.env["HF_HUB_OFFLINE"]
    server.broken = set()
    assert files_in(find.folder("org/model", use_hf=use_hf)) == FETCHED
    assert server.served["model.safetensors"] == 1  # what had arrived was kept


@HUBS
def test_what_is_not_there_is_said(find: Finder, server: HubServer, use_hf: bool) -> None:
    hub = "Hugging Face" if use_hf else "ModelScope"
    assert f"- {hub} ({server.url}): has no such model" in find("org/absent", use_hf=use_hf)
    assert "has no such model at revision v9" in find("org/model", use_hf=use_hf, revision="v9")
    said = find("org/pickled", use_hf=use_hf)
    assert said.startswith(f"NotFoundError org/pickled on {hub} holds no weights")
    assert "pytorch_model.bin, a pickle" in said


def test_a_revision_is_found_again(find: Finder, server: HubServer) -> None:
    folder = find.folder("org/model", use_hf=True, revision=COMMIT)
    server.shutdown()
    assert find.folder("org/model", revision=COMMIT) == folder


def test_a_setting_asks_hugging_face(find: Finder) -> None:
    find.env["USE_HF"] = "1"
    assert find.folder("org/model").is_relative_to(find.home / "huggingface")


def test_offline_asks_nobody(find: Finder, server: HubServer) -> None:
    find.env["HF_HUB_OFFLINE"] = "1"
    assert "not asked, because HF_HUB_OFFLINE is set" in find("org/model")
    assert not server.served


@HUBS
def test_a_hub_that_does_not_answer_is_said_soon(find: Finder, use_hf: bool) -> None:
    nobody = "http://127.0.0.1:9"
    find.env |= {"HF_ENDPOINT": nobody, "MODELSCOPE_ENDPOINT": nobody}
    started = time.monotonic()
    said = find("org/model", use_hf=use_hf)
    assert time.monotonic() - started < 10
    assert f"({nobody}): did not answer" in said
    assert said.startswith("NotFoundError The model 'org/model' was not found. Looked in:\n  - the path ")
