"""A model that is evaluated: found, with what its run says of it, and opened when it is needed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from swiftune.config import EvalArguments, InferArguments
from swiftune.config.quantization import QuantizeArguments
from swiftune.config.values import RECORDED
from swiftune.errors import ArgumentsError
from swiftune.generate.engine import Engine
from swiftune.recipes.checkpoint_args import Resolved, checkpoint_in, resolve
from swiftune.recipes.evaluate.asking import Asker
from swiftune.recipes.infer import sampling_of
from swiftune.recipes.opening import Opened, open_tokenizer
from swiftune.runtime import garbage

BASE = "base"


@dataclass
class Candidate:
    """One of the models.

    Attributes:
        label: what it is called in tables.
        resolved: how it is run; ``resolved.args`` says what it was trained on, where a run says so.
    """

    label: str
    resolved: Resolved[InferArguments]
    own: EvalArguments

    @cached_property
    def opened(self) -> Opened:
        """Its tokenizer and configuration."""
        return open_tokenizer(self.resolved.args, adapters=self.resolved.adapters)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with its weights, and with how they are run."""
        args, folder = self.resolved.args, self.opened.folder
        weights = [file for place in (folder, *self.resolved.adapters) for file in sorted(place.glob("*.safetensors"))]
        about = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
        run = [args.torch_dtype, args.infer_backend, args.attn_impl, args.adapter_weights, args.template, args.system]
        run += [getattr(args, name) for name in QuantizeArguments.model_fields]
        return hashlib.sha256(json.dumps([str(folder), about, run]).encode()).hexdigest()[:8]

    @property
    def folder(self) -> Path:
        """Where its answers are kept."""
        name = re.sub(r"[^\w.-]+", "-", self.label).strip("-")
        return Path(self.own.eval_output_dir) / f"{name}-{self.fingerprint}"

    @contextmanager
    def asker(self) -> Iterator[Asker]:
        """Within it the model can be asked; it is loaded at the first question that has no answer yet."""
        engines: list[Engine] = []

        def engine() -> Engine:
            from swiftune.recipes.engines import open_engine

            if not engines:
                engines.append(open_engine(self.resolved.args, self.opened, self.resolved.adapters))
                garbage.look_as_usual()
            return engines[0]

        context = self.opened.config.get("max_position_embeddings")
        room = [limit for limit in (self.own.max_length, context and context - 1) if limit]
        try:
            yield Asker(
                engine,
                self.opened.renderer,
                sampling_of(self.own, self.own.seed),
                samples=self.own.eval_samples,
                batch=self.own.max_batch_size,
                max_prompt=min(room) if room else None,
            )
        finally:
            for one in engines:
                one.close()


def candidates_of(args: EvalArguments) -> list[Candidate]:
    """The models that the arguments name, the one that the others are compared with first.

    ``base`` is the model of the first adapter that is named, with that run's template and system prompt.
    """
    if not args.compare:
        resolved = resolve(_infer(args, adapters=args.adapters))
        label = _name(resolved.adapters[0] if resolved.adapters else Path(str(resolved.args.model or "built-in")))
        return [Candidate(label, resolved, args)]
    named = dict(_named(text) for text in args.compare)
    if len(named) < len(args.compare):
        raise ArgumentsError(["--compare names two models alike: tell them apart with name=FOLDER."])
    found = {label: _resolved(place, args) for label, place in named.items() if place != BASE}
    tuned = next(iter(found.values()), None)
    base = resolve(_infer(args, adapters=[]))
    if tuned is not None and tuned.adapters:
        base = Resolved(tuned.args.model_copy(update={"adapters": []}), [], None)
    return [Candidate(label, found.get(label, base), args) for label in named]


def _resolved(place: str, args: EvalArguments) -> Resolved[InferArguments]:
    """An adapter, or a folder that is a whole model."""
    path = Path(os.path.expanduser(place))
    whole = path.is_dir() and (checkpoint_in(path) / "config.json").exists()
    return resolve(_infer(args, adapters=[], model=place) if whole else _infer(args, adapters=[place]))


def _infer(args: EvalArguments, **more: Any) -> InferArguments:
    """How ``swift infer`` would be told to run the model; what was not given is left to the model's own run."""
    given = {name: getattr(args, name) for name in args.model_fields_set if name in InferArguments.model_fields}
    for name in ("temperature", "max_batch_size"):
        given[name] = getattr(args, name)
    return InferArguments.model_validate({**given, "load_data_args": True, **more}, context=RECORDED)


def _named(text: str) -> tuple[str, str]:
    name, mark, place = text.partition("=")
    return (name, place) if mark and re.fullmatch(r"[\w.-]+", name) else (_name(Path(text)), text)


def _name(path: Path) -> str:
    """``v0-20261122-101500-checkpoint-50`` of a checkpoint, else the last part."""
    return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name or "model"
