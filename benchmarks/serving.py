"""Many clients at once: seconds to the first token, tokens a second, and the longest wait between two tokens.

Each client asks one question of its own at the same moment and reads 64 tokens, never fewer. All contenders answer the
same questions, greedily, with the same weights, one contender after the other at each number of clients.

- one by one: Transformers' ``generate`` for one client after the other.
- static batch: ``generate`` for all of them at once; possible only because all have come at the same moment.
- generate_batch: Transformers' own continuous batching.
- ours: the engine behind ``swift infer``, read by a thread a client.
- vLLM merged, vLLM unmerged: the engine behind ``swift infer --infer_backend vllm``, of the weights alone, and with a
  LoRA adapter of rank 8 on all linear layers. Each is started anew for each number of clients, which is not counted.
  Left out, which is said, where there is no vLLM.

Shapes: B clients, T tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from benchmarks.measure import DTYPE, Report, keep, machine

CLIENTS = (1, 4, 16, 64)
TOKENS = 64
SUBJECTS = ("the tides", "bread", "Bach", "a bicycle", "rain", "glass", "the Moon", "tea", "chess", "paper", "salt")
ASKED = ("Explain how one makes sense of {}.", "Tell a child about {}.", "What would be odd about a world without {}?")

Times = list[list[float]]
"""When each client got each of its tokens, in seconds from the moment in which all asked."""
Contender = Callable[[Any, Any, list[list[int]], int], Times]


def one_by_one(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int) -> Times:
    """``generate`` for one prompt after the other."""
    began = time.perf_counter()
    return [_generate(model, tokenizer, [prompt], tokens, began)[0] for prompt in prompts]


def static_batch(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int) -> Times:
    """``generate`` for all prompts."""
    return _generate(model, tokenizer, prompts, tokens, time.perf_counter())


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int, began: float) -> Times:
    times: list[float] = []

    class Clock(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            times.append(time.perf_counter() - began)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    model.generate(
        **padded,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        stopping_criteria=StoppingCriteriaList([Clock()]),
    )
    return [times for _ in prompts]


def generate_batch(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int) -> Times:
    """Transformers' continuous batching."""
    del tokenizer
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    attention = model.config._attn_implementation
    began = time.perf_counter()
    memory = ContinuousBatchingConfig(
        max_memory_percent=0.1
    )  # it fills what it takes with zeros: by default, nearly all
    done = model.generate_batch(prompts, config, memory, record_timestamps=True)
    model.set_attn_implementation(attention)
    return [[at - began for at in output.timestamps] for output in done.values()]


def ours(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int) -> Times:
    """Our engine."""
    from swiftune.generate.engine import Request, Sampling
    from swiftune.generate.transformers_engine import TransformersEngine

    engine = TransformersEngine(model, tokenizer, max_batch_size=len(prompts), pack=True)
    list(engine.generate([Request([1], Sampling(1, 0.0))]))  # it tries the model out first, as at the start of a server
    times = _read_by_threads(engine, prompts, tokens)
    engine.close()
    return times


def vllm_merged(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int) -> Times:
    """vLLM without adapters."""
    return _by_vllm(model, tokenizer, prompts, tokens, adapter=False)


def vllm_unmerged(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int) -> Times:
    """vLLM with an adapter."""
    return _by_vllm(model, tokenizer, prompts, tokens, adapter=True)


def _by_vllm(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int, *, adapter: bool) -> Times:
    from swiftune.generate.engine import BASE, Request, Sampling
    from swiftune.generate.vllm_engine import VllmEngine
    from swiftune.generate.vllm_server import find_python

    with tempfile.TemporaryDirectory() as name:
        folder, tuned = Path(name, "model"), Path(name, "adapter")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if adapter:
            _save_adapter(folder, tuned)
        engine = VllmEngine(
            folder,
            tokenizer,
            python=find_python(),
            adapters={"adapter": tuned} if adapter else {},
            default="adapter" if adapter else BASE,
            dtype=str(model.dtype).removeprefix("torch."),
            words=["--max-model-len", "2048", "--kv-cache-memory-bytes", str(2**31)],
        )
        with closing(engine):
            # What is compiled at the first requests, without computing any of the prompts that count.
            list(engine.generate([Request(prompt[::-1], Sampling(4, 0.0)) for prompt in prompts]))
            return _read_by_threads(engine, prompts, tokens)


def _save_adapter(folder: Path, target: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(target)


def _read_by_threads(engine: Any, prompts: list[list[int]], tokens: int) -> Times:
    """Each prompt streamed by a thread of its own."""
    from swiftune.generate.engine import Request, Sampling

    times: Times = [[] for _ in prompts]
    began = time.perf_counter()

    def read(number: int) -> None:
        for piece in engine.stream(Request(prompts[number], Sampling(tokens, 0.0))):
            times[number] += [time.perf_counter() - began] * len(piece.tokens)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


CONTENDERS: dict[str, Contender] = {
    "one by one": one_by_one,
    "static batch": static_batch,
    "generate_batch": generate_batch,
    "ours": ours,
    "vLLM merged": vllm_merged,
    "vLLM unmerged": vllm_unmerged,
}


def at_hand() -> list[str]:
    """The contenders that are installed; says which are not."""
    from swiftune.errors import UsageError
    from swiftune.generate.vllm_server import find_python

    try:
        find_python()
    except UsageError as missing:
        print(f"Without vLLM: {missing}", file=sys.stderr)
        return [name for name in CONTENDERS if not name.startswith("vLLM")]
    return list(CONTENDERS)


def run(
    clients: Sequence[int] = CLIENTS,
    contenders: Sequence[str] | None = None,
    *,
    model: str | None = None,
    tokens: int = TOKENS,
    dtype: torch.dtype = DTYPE,
) -> Report:
    """Times ``contenders``, the names of some of ``CONTENDERS``; by default all that are installed."""
    from swiftune import hub

    contenders = at_hand() if contenders is None else contenders
    folder = hub.find_model(model)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded.generation_config = GenerationConfig()  # no end token: all answers have the same length
    report = Report(
        f"{tokens} tokens to each client ({machine()})",
        ("clients", "by", "first token", "worst first", "tokens/s", "worst gap", "times one by one"),
    )
    for name in contenders:
        CONTENDERS[name](loaded, tokenizer, questions(tokenizer, 1), 2)  # what the first call alone costs
    for count in clients:
        alone = None
        for name in contenders:
            prompts = questions(tokenizer, count)
            times = CONTENDERS[name](loaded, tokenizer, prompts, tokens)
            rate = sum(map(len, times)) / max(t[-1] for t in times)
            alone = alone or rate
            first = [t[0] for t in times]
            gap = max((b - a for t in times for a, b in pairwise(t)), default=0.0)
            report.add(count, name, statistics.median(first), max(first), rate, gap, rate / alone)
    return report


def questions(tokenizer: Any, count: int) -> list[list[int]]:
    """Different prompts, which begin with the same system prompt."""
    asked = [form.format(subject) for subject in SUBJECTS for form in ASKED]
    texts = [asked[n % len(asked)] + " Please." * (n // len(asked)) for n in range(count)]
    chats = [[{"role": "user", "content": text}] for text in texts]
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]
    return [list(row) for row in ids]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", metavar="FILE", type=Path, help="keep the figures in this file")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--by", nargs="+", choices=list(CONTENDERS))
    args = parser.parse_args()
    keep(run(args.clients, args.by), args.json)


if __name__ == "__main__":
    main()
