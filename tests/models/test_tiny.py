"""The small models are what a hub would give: plain Transformers opens and runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.parametrize("fixture", ["tiny_qwen2", "tiny_llama"])
def test_opens_in_transformers(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert len(tokenizer) <= model.config.vocab_size
    assert tokenizer.decode(tokenizer.encode("Who are you? 你是谁？ 123\n\n🙂", add_special_tokens=False)) == (
        "Who are you? 你是谁？ 123\n\n🙂"
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    out = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]
    assert torch.isfinite(model(**prompt).logits).all()
