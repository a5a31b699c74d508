"""What ``swift deploy`` serves of the adapters that it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from swiftune.config import DeployArguments
from swiftune.recipes.deploy import _Serving

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


def adapter(base: Path, folder: Path, **more: Any) -> Path:
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **more)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("bias", "served"), [("none", ["tuned", "Tiny-Qwen2"]), ("all", ["tuned"])])
def test_the_base_is_served_where_it_is_there(
    serve: Serve, tiny_qwen2: Path, tmp_path: Path, bias: str, served: list[str]
) -> None:
    serving = serve(model=str(tiny_qwen2), adapters=[str(adapter(tiny_qwen2, tmp_path / "tuned", bias=bias))])
    assert list(serving.service.models) == served
