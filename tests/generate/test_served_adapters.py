"""Several adapters on one base, each request with its own: answered as each adapter alone answers in plain PEFT."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from swiftune.errors import AdapterError, UsageError
from swiftune.generate.engine import BASE, Request, Sampling
from swiftune.generate.transformers_engine import TransformersEngine
from swiftune.tuners import load_adapter
from tests import tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",
    "ignore:Model has .tie_word_embeddings=True.:UserWarning",
)

KINDS: dict[str, dict[str, Any]] = {
    "first": {"target_modules": "all-linear"},
    "v1.2 second": {"r": 3, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "dora": {"target_modules": ["v_proj", "o_proj"], "use_dora": True},
    "norms": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
}
GREEDY = Sampling(10, 0.0)


@pytest.fixture(scope="module")
def folders(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **kind)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen2), config)
        for key, parameter in model.named_parameters():
            if "modules_to_save" in key:
                torch.nn.init.normal_(parameter, 1.0, 0.3)
        found[name] = tmp_path_factory.mktemp("adapter") / "checkpoint-1"
        model.save_pretrained(found[name], save_embedding_layers=False)
    return found


@pytest.fixture(scope="module")
def prompts(tiny_qwen2: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    return [list(tokenizer.encode(text)) for text in ("Who are you?", "def add(a, b):", "给出三个建议")]


@pytest.fixture(scope="module")
def alone(tiny_qwen2: Path, folders: dict[str, Path], prompts: list[list[int]]) -> dict[str, list[list[int]]]:
    """What each adapter writes in plain PEFT."""
    answers = {}
    for name in [BASE, *KINDS]:
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_qwen2).eval()
        if name:
            model = PeftModel.from_pretrained(model, folders[name]).eval()
        written = [
            model.generate(input_ids=torch.tensor([p]), max_new_tokens=10, do_sample=False)[0, len(p) :].tolist()
            for p in prompts
        ]
        answers[name] = written
    assert len({str(written) for written in answers.values()}) == len(answers)
    return answers


def engine_of(folder: Path, adapter: Path | None = None, **more: Any) -> TransformersEngine:
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter is not None:
        model = load_adapter(model, adapter)
    return TransformersEngine(model, AutoTokenizer.from_pretrained(folder), **more)


@pytest.mark.parametrize("default", [None, "first", "dora", "norms", "embeddings"])
@pytest.mark.parametrize("most", [1, 3, 16])
def test_adapters_at_once_answer_as_each_alone(
    tiny_qwen2: Path,
    folders: dict[str, Path],
    prompts: list[list[int]],
    alone: dict[str, list[list[int]]],
    default: str | None,
    most: int,
) -> None:
    engine = engine_of(tiny_qwen2, None if default is None else folders[default], max_batch_size=most)
    list(engine.generate([Request(prompts[0], GREEDY)]))
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    todo = [(name, n) for n in range(len(prompts)) for name in (BASE, *KINDS, None)]
    for index, answer in engine.generate([Request(prompts[n], GREEDY, adapter=name) for name, n in todo]):
        name, n = todo[index]
        assert answer.token_ids == alone[(default or BASE) if name is None else name][n], todo[index]


def test_adapters_come_and_go_while_requests_run(
    tiny_qwen2: Path, folders: dict[str, Path], prompts: list[list[int]], alone: dict[str, list[list[int]]]
) -> None:
    engine = engine_of(tiny_qwen2)
    long = engine.stream(Request(prompts[0], Sampling(600, 1.5, seed=1)))
    reading = iter(long)
    next(reading)
    engine.load_adapter("a", folders["first"])
    assert engine.adapters == ("a",)
    with pytest.raises(AdapterError, match="already"):
        engine.load_adapter("a", folders["first"])
    ((_, answer),) = engine.generate([Request(prompts[1], GREEDY, adapter="a")])
    assert answer.token_ids == alone["first"][1]
    user = engine.stream(Request(prompts[1], Sampling(300, 1.5, seed=1), adapter="a"))
    unloading = threading.Thread(target=engine.unload_adapter, args=("a",))
    unloading.start()
    list(user)  # ends with its adapter, although that is to go
    unloading.join(10)
    assert not unloading.is_alive()
    assert engine.adapters == ()
    with pytest.raises(UsageError, match="no adapter a"):
        engine.stream(Request(prompts[1], GREEDY, adapter="a"))
    with pytest.raises(AdapterError, match="no adapter a"):
        engine.unload_adapter("a")
    engine.load_adapter("a", folders["v1.2 second"])  # nothing is left of the other one under this name
    ((_, answer),) = engine.generate([Request(prompts[1], GREEDY, adapter="a")])
    assert answer.token_ids == alone["v1.2 second"][1]
    list(reading)
    while engine.load() != (0, 0):
        time.sleep(0.01)


def test_nothing_is_left_of_an_adapter_whose_reader_leaves_while_it_is_unloaded(
    tiny_qwen2: Path, folders: dict[str, Path]
) -> None:
    prompt = list(range(5, 45))
    ((_, wanted),) = engine_of(tiny_qwen2, folders["v1.2 second"]).generate([Request(prompt, GREEDY)])
    engine = engine_of(tiny_qwen2)
    engine.load_adapter("a", folders["first"])
    user = engine.stream(Request(prompt, Sampling(600, 1.5, seed=1), adapter="a"))
    reading = iter(user)
    next(reading)

    def leave(*_: Any) -> None:
        if engine._scheduler._jobs:  # the unload waits
            user.close()

    with engine._model.register_forward_pre_hook(leave):
        engine.unload_adapter("a")
    engine.load_adapter("a", folders["v1.2 second"])
    ((_, answer),) = engine.generate([Request(prompt, GREEDY, adapter="a")])
    assert answer.token_ids == wanted.token_ids


def test_what_does_not_fit_is_refused_and_leaves_nothing(
    tiny_qwen2: Path, folders: dict[str, Path], prompts: list[list[int]], alone: dict[str, Any], tmp_path: Path
) -> None:
    wide = engine_of(tiny.make_model(tmp_path / "wide", hidden=128))
    with pytest.raises(AdapterError):
        wide.load_adapter("a", folders["first"])
    with pytest.raises(AdapterError):
        wide.load_adapter("a", tmp_path)
    assert wide.adapters == ()
    list(wide.generate([Request(prompts[0], GREEDY)]))
    engine = engine_of(tiny_qwen2, folders["first"])
    with pytest.raises(AdapterError, match="started with"):
        engine.unload_adapter("default")
    ((_, answer),) = engine.generate([Request(prompts[0], GREEDY, adapter=BASE)])
    assert answer.token_ids == alone[BASE][0]


@pytest.mark.parametrize("kind", [{"bias": "all"}, {"bias": "lora_only"}, {"init_lora_weights": "pissa"}])
def test_what_changes_the_base_is_served_by_itself(
    tiny_qwen2: Path, folders: dict[str, Path], prompts: list[list[int]], kind: dict[str, Any], tmp_path: Path
) -> None:
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **kind)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen2), config).save_pretrained(tmp_path)
    engine = engine_of(tiny_qwen2)
    with pytest.raises(AdapterError, match="would change the base"):
        engine.load_adapter("a", tmp_path)
    assert engine.adapters == ()
    engine = engine_of(tiny_qwen2, tmp_path)
    list(engine.generate([Request(prompts[0], GREEDY)]))
    with pytest.raises(UsageError, match="changed the base"):
        engine.stream(Request(prompts[0], GREEDY, adapter=BASE))
    with pytest.raises(AdapterError, match="changes the base"):
        engine.load_adapter("a", folders["first"])
