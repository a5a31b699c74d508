"""``swift sft`` against a plain Transformers + PEFT loop that knows nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.chats import chats, log_of, run_of, swift, write_jsonl

STEPS, ROWS, BATCH = 20, 42, 4  # 42 rows make 11 steps an epoch, the last of 2 rows


def encode(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Ids and labels of a chat by hand: the answer and its end token are learned."""
    messages = row["messages"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    answer = tokenizer.encode(messages[1]["content"] + "<|im_end|>", add_special_tokens=False)
    return prompt + answer, [-100] * len(prompt) + answer


def reference(folder: Path, rows: list[dict[str, Any]], train_type: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of a loop that pads nothing, packs nothing, and takes one row at a time."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

    torch.manual_seed(42)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if train_type == "lora":
        config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, STEPS)
    encoded = [encode(AutoTokenizer.from_pretrained(folder), row) for row in rows]
    losses = []
    batches = [range(start, min(start + BATCH, ROWS)) for start in range(0, ROWS, BATCH)] * 2
    for batch in batches[:STEPS]:
        total = sum(label != -100 for i in batch for label in encoded[i][1])
        step_loss = 0.0
        for i in batch:
            ids, labels = (torch.tensor([values]) for values in encoded[i])
            logits = model(input_ids=ids).logits
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum") / total
            loss.backward()
            step_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(step_loss)
    return losses, get_peft_model_state_dict(model) if train_type == "lora" else model.state_dict()


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_twenty_steps_follow_the_reference(tiny_qwen2: Path, tmp_path: Path, train_type: str) -> None:
    rows = chats(ROWS)
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    code = swift(
        *("sft", "--model", tiny_qwen2, "--dataset", data, "--train_type", train_type, "--torch_dtype", "float32"),
        *("--max_steps", STEPS, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2),
        *("--learning_rate", 1e-3, "--lora_dropout", 0, "--train_dataloader_shuffle", "false", "--logging_steps", 1),
        *("--output_dir", tmp_path / "out"),
    )
    assert code == 0
    losses, weights = reference(tiny_qwen2, rows, train_type)
    log = [record for record in log_of(run_of(tmp_path / "out")) if "loss" in record]
    assert [record["loss"] for record in log] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0]
    name = "adapter_model.safetensors" if train_type == "lora" else "model.safetensors"
    saved = load_file(run_of(tmp_path / "out") / f"checkpoint-{STEPS}" / name)
    for key, value in saved.items():
        torch.testing.assert_close(value, weights[key], rtol=1e-3, atol=1e-5)


def test_batch_times_accumulation_is_all_that_counts(tiny_qwen2: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", chats(24))  # the second step is short: 8 rows
    seen = []
    for batch, accumulation in ((1, 16), (4, 4), (16, 1)):
        out = tmp_path / f"{batch}x{accumulation}"
        code = swift(
            *("sft", "--model", tiny_qwen2, "--dataset", data, "--torch_dtype", "float32", "--lora_dropout", 0),
            *("--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation),
            *("--num_train_epochs", 1, "--logging_steps", 1, "--output_dir", out),
        )
        assert code == 0
        log = [record for record in log_of(run_of(out)) if "loss" in record]
        assert [record["global_step/max_steps"] for record in log] == ["1/2", "2/2"]
        seen.append([(record["loss"], record["grad_norm"]) for record in log])
    assert seen[1] == [pytest.approx(pair, rel=1e-6) for pair in seen[0]]
    assert seen[2] == [pytest.approx(pair, rel=1e-6) for pair in seen[0]]
