"""What ``swift deploy`` serves of the adapters that it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from swiftune.config import DeployArguments
from swiftune.errors import AdapterError
from swiftune.generate.engine import Request, Sampling
from swiftune.recipes.deploy import _Serving
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

Serve = Callable[..., _Serving]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Opens what a server would serve, without the server."""
    opened: list[_Serving] = []

    def serving(**given: Any) -> _Serving:
        opened.append(_Serving(DeployArguments.model_validate({"torch_dtype": "float32", **given})))
        return opened[-1]

    yield serving
    for one in opened:
        one.service.close()
        one.service.engine.close()


def adapter(base: Any, folder: Path, **more: Any) -> Path:
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **more)
    get_peft_model(base, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("bias", "served"), [("none", ["tuned", "Tiny-Qwen2"]), ("all", ["tuned"])])
def test_the_base_is_served_where_it_is_there(
    serve: Serve, tiny_qwen2: Path, tmp_path: Path, bias: str, served: list[str]
) -> None:
    tuned = adapter(AutoModelForCausalLM.from_pretrained(tiny_qwen2), tmp_path / "tuned", bias=bias)
    serving = serve(model=str(tiny_qwen2), adapters=[str(tuned)])
    assert list(serving.service.models) == served


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning")
def test_tokens_that_an_adapter_brings_are_served_as_they_are_exported(
    serve: Serve, tiny_qwen2: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    tokenizer.add_tokens([f"neologism{number}" for number in range(40)])
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    more = adapter(model, tmp_path / "more", modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    tokenizer.save_pretrained(more)
    plain = adapter(AutoModelForCausalLM.from_pretrained(tiny_qwen2), tmp_path / "plain")

    serving = serve(model=str(tiny_qwen2), adapters=[str(more)])
    assert list(serving.service.models) == ["more"]
    assert serving.service.tokenizer("neologism7")["input_ids"] == tokenizer("neologism7")["input_ids"]
    ((_, answer),) = serving.service.engine.generate([Request([len(tokenizer) - 1], Sampling(3, 0.0))])
    assert len(answer.token_ids) == 3
    with pytest.raises(AdapterError, match="none can be beside it"):
        serving.open_adapter("plain", plain, {})

    with pytest.raises(AdapterError, match="brings tokens of its own"):
        serve(model=str(tiny_qwen2), adapters=[f"more={more}"])
    with pytest.raises(AdapterError, match="brings tokens of its own"):
        serve(model=str(tiny_qwen2)).open_adapter("more", more, {})


def test_an_adapter_of_another_model_is_not_loaded(serve: Serve, tiny_qwen2: Path, tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(tiny.make_model(tmp_path / "other", seed=7))
    serving = serve(model=str(tiny_qwen2))
    with pytest.raises(AdapterError, match="made for another base model"):
        serving.open_adapter("other", adapter(other, tmp_path / "tuned"), {})
