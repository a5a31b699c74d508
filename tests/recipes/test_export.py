"""``swift export`` as a user runs it: what serves must be what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from swiftune.config import EvalArguments
from swiftune.models.load import load_model
from swiftune.recipes import export_checks
from swiftune.recipes.evaluate.candidates import candidates_of
from swiftune.tuners import load_adapter
from tests import tiny
from tests.recipes.chats import chats, run_of, sft, swift, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SYSTEM = "Be brief: {{ 1 }} {% 2 %} 'quoted' \"twice\"\nand 谢谢 😀."
FAST = {"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "torch_dtype": "float32"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", chats(60))


@pytest.fixture(scope="module")
def checkpoint(tiny_qwen2: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short real run with a system prompt of its own."""
    out = tmp_path_factory.mktemp("out")
    assert sft({"model": tiny_qwen2, "dataset": data, "system": SYSTEM, "output_dir": out, **FAST}) == 0
    return run_of(out) / "checkpoint-3"


@pytest.fixture(scope="module")
def merged(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("merged") / "model"
    assert swift("export", "--adapters", checkpoint, "--merge_lora", "true", "--output_dir", target) == 0
    return target


def record(folder: Path, name: str = "parity.json") -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return values


def opened(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy(model: Any, ids: list[int], stop: set[int], limit: int = 12) -> list[int]:
    """Token after token, each by a whole forward pass, as training computes it."""
    written: list[int] = []
    while len(written) < limit and not stop.intersection(written):
        written.append(int(model(input_ids=torch.tensor([ids + written]), use_cache=False).logits[0, -1].argmax()))
    return written


def test_fifty_prompts_are_answered_alike_by_all_that_serve(
    checkpoint: Path, merged: Path, tiny_qwen2: Path, data: Path, tmp_path: Path
) -> None:
    """Training-time forward, our engine, the merged folder in plain Transformers, and its pipeline: token for token."""
    questions = [row["messages"][0]["content"] for row in chats(50, seed=7)]
    plain = AutoTokenizer.from_pretrained(tiny_qwen2)
    live, whole, tokenizer = (
        load_adapter(load_model(tiny_qwen2, dtype=torch.float32), checkpoint).eval(),
        opened(merged),
        AutoTokenizer.from_pretrained(merged),
    )
    serve = pipeline("text-generation", model=str(merged), dtype=torch.float32)
    stop = set(whole.generation_config.eos_token_id)
    rows = write_jsonl(tmp_path / "questions.jsonl", [{"query": question} for question in questions])
    words = ["--val_dataset", rows, "--result_path", tmp_path / "answers.jsonl", "--temperature", "0"]
    assert swift("infer", "--adapters", checkpoint, *words, "--max_new_tokens", "12", "--max_batch_size", "8") == 0
    engine = [json.loads(line)["response"] for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    for question, by_engine in zip(questions, engine, strict=True):
        chat = [{"role": "user", "content": question}]
        seen = plain.apply_chat_template(
            [{"role": "system", "content": SYSTEM}, *chat], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] == seen
        trained = greedy(live, seen, stop)
        ids = torch.tensor([seen])
        written = whole.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert written[0, len(seen) :].tolist() == trained
        text = tokenizer.decode(trained, skip_special_tokens=True)
        (said,) = serve(chat, max_new_tokens=12, do_sample=False)
        assert said["generated_text"][-1]["content"] == text
        assert by_engine == text


def test_the_record_says_what_was_compared(merged: Path, checkpoint: Path) -> None:
    parity = record(merged)
    assert parity["holds"] is True
    assert parity["greedy_tokens_equal"] == 1.0
    assert parity["greedy_answers_equal"] == parity["prompts"] == 20  # twelve questions, eight rows of the run
    assert parity["kl_mean"] < parity["tolerance"]["kl"] == 1e-6
    assert parity["source"]["adapters"][0]["path"] == str(checkpoint)
    assert parity["source"]["system"] == SYSTEM
    assert set(parity["files"]) == {path.name for path in merged.iterdir()} - {"parity.json"}
    assert {"torch", "transformers", "peft"} <= set(parity["versions"])


def test_the_merged_weights_are_the_sum_rounded_once(tmp_path: Path, data: Path) -> None:
    """W + alpha / r B A in float32, to the base's bfloat16, for every layer."""
    base = tiny.make_model(tmp_path / "base", dtype="bfloat16")
    flags = {"model": base, "dataset": data, "output_dir": tmp_path / "out", **FAST, "lora_rank": 4, "lora_alpha": 6}
    assert sft(flags, use_rslora="true") == 0
    adapter = run_of(tmp_path / "out") / "checkpoint-3"
    assert swift("merge-lora", "--adapters", adapter) == 0
    merged = adapter.with_name("checkpoint-3-merged")
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    changed = 0
    for name, weight in after.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        expected = before[name]
        if f"{key}.lora_A.weight" in factors:
            update = factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"] * (6 / 4**0.5)
            expected, changed = (expected.float() + update).to(torch.bfloat16), changed + 1
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, expected), name
    assert changed == 14
    assert record(merged)["dtype"] == "bfloat16"


def test_two_adapters_of_different_ranks(checkpoint: Path, tiny_qwen2: Path, data: Path, tmp_path: Path) -> None:
    flags = {"model": tiny_qwen2, "dataset": data, "output_dir": tmp_path / "out", "system": SYSTEM, **FAST}
    assert sft(flags, lora_rank=3, lora_alpha=5, use_rslora="true", target_modules="q_proj") == 0
    other = run_of(tmp_path / "out") / "checkpoint-3"
    for order, weights in (((checkpoint, other), (0.7, 0.3)), ((other, checkpoint), (0.3, 0.7))):
        target = tmp_path / f"mixed-{weights[0]}"
        words = ["--adapters", ",".join(map(str, order)), "--adapter_weights", "{},{}".format(*weights)]
        assert swift("export", *words, "--merge_lora", "true", "--output_dir", target) == 0
        base, mixed = load_file(tiny_qwen2 / "model.safetensors"), load_file(target / "model.safetensors")
        first, second = (load_file(path / "adapter_model.safetensors") for path in (checkpoint, other))
        for name, weight in mixed.items():
            key, expected = f"base_model.model.{name.removesuffix('.weight')}", base[name]
            for factors, share in ((first, 0.7 * 32 / 8), (second, 0.3 * 5 / 3**0.5)):
                if f"{key}.lora_A.weight" in factors:
                    expected = expected + share * (factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"])
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)


def test_a_sum_on_a_half_precision_base_is_rounded_once(tmp_path: Path, data: Path) -> None:
    base = tiny.make_model(tmp_path / "base", dtype="bfloat16")
    adapters = []
    for rank in (3, 5):
        flags = {"model": base, "dataset": data, "output_dir": tmp_path / f"out{rank}", **FAST, "lora_rank": rank}
        assert sft(flags, lora_alpha=8) == 0
        adapters.append(run_of(tmp_path / f"out{rank}") / "checkpoint-3")
    words = ["--adapters", *adapters, "--adapter_weights", "0.7", "0.3", "--output_dir", tmp_path / "mixed"]
    assert swift("merge-lora", *words) == 0
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "mixed" / "model.safetensors")
    first, second = (load_file(path / "adapter_model.safetensors") for path in adapters)
    for name in (name for name in after if name.endswith("proj.weight")):
        key, expected = f"base_model.model.{name.removesuffix('.weight')}", before[name].double()
        for factors, share in ((first, 0.7 * 8 / 3), (second, 0.3 * 8 / 5)):
            a, b = (factors[f"{key}.lora_{which}.weight"].double() for which in "AB")
            expected += share * (b @ a)
        assert (after[name] == expected.to(torch.bfloat16)).float().mean() > 0.999  # but for ties


@pytest.mark.parametrize(
    ("family", "settings", "tied"),
    [
        ("qwen2", {"use_dora": "true"}, True),
        ("qwen2", {"modules_to_save": "embed_tokens"}, True),
        ("llama", {"modules_to_save": "embed_tokens lm_head"}, False),
        ("qwen2", {"target_modules": "q_proj lm_head"}, False),
        ("qwen2", {"target_modules": "embed_tokens"}, False),
        ("qwen2", {"lora_bias": "all"}, True),
    ],
)
def test_whatever_was_trained_is_merged(
    family: str, settings: Any, tied: bool, tiny_qwen2: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    base = {"qwen2": tiny_qwen2, "llama": tiny_llama}[family]
    words = [word for name, value in settings.items() for word in (f"--{name}", *value.split())]
    fast = [word for name, value in FAST.items() for word in (f"--{name}", value)]
    assert swift("sft", "--model", base, "--dataset", data, "--output_dir", tmp_path / "out", *fast, *words) == 0
    adapter = run_of(tmp_path / "out") / "checkpoint-3"
    target = tmp_path / "merged"
    assert swift("export", "--adapters", adapter, "--merge_lora", "true", "--output_dir", target) == 0
    assert record(target)["greedy_tokens_equal"] == 1.0
    ids = torch.arange(20)[None]
    live = load_adapter(load_model(base, dtype=torch.float32), adapter).eval()
    whole = opened(target)
    torch.testing.assert_close(whole(ids).logits, live(ids).logits, rtol=1e-4, atol=1e-4)
    assert whole.config.tie_word_embeddings is tied
    assert not torch.allclose(whole(ids).logits, opened(base)(ids).logits, atol=1e-3)


def test_tokens_that_were_added_for_the_adapter(tiny_qwen2: Path, tmp_path: Path) -> None:
    """As PEFT users do it: new tokens, embeddings of their own saved with the adapter, the tokenizer beside it."""
    from peft import LoraConfig, get_peft_model

    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    for number in range(30):
        tokenizer.add_tokens(f"neologism{number}")
    torch.manual_seed(3)
    model = opened(tiny_qwen2)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(
        target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True,
        init_lora_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped = get_peft_model(model, config).eval()
    adapter = tmp_path / "adapter"
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        wrapped.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    assert swift("merge-lora", "--adapters", adapter, "--model", tiny_qwen2) == 0
    whole = opened(tmp_path / "adapter-merged")
    ids = torch.tensor([tokenizer("neologism7 neologism29")["input_ids"]])
    assert int(ids.max()) >= 608
    torch.testing.assert_close(whole(ids).logits, wrapped(ids).logits, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter-merged")("neologism7")["input_ids"] == [ids[0, 0]]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"query": "neologism7 neologism29", "response": "x"}])
    written = []
    for words in (["--adapters", adapter, "--model", tiny_qwen2], ["--model", tmp_path / "adapter-merged"]):
        path = tmp_path / f"{len(written)}.jsonl"
        flags = ["--val_dataset", rows, "--result_path", path, "--temperature", "0", "--max_new_tokens", "20"]
        assert swift("infer", *words, *flags) == 0
        written.append(json.loads(path.read_text())["response"])
    assert written[0] == written[1]
    args = EvalArguments(adapters=[str(adapter)], model=str(tiny_qwen2), eval_dataset=["gsm8k"])
    assert candidates_of(args)[0].opened.tokenizer("neologism7")["input_ids"] == [ids[0, 0]]


def test_a_fully_tuned_checkpoint_and_a_plain_model(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    flags = {"model": tiny_llama, "dataset": data, "output_dir": tmp_path / "out", "system": "Be kind.", **FAST}
    assert sft(flags, train_type="full", learning_rate=1e-3) == 0
    tuned = run_of(tmp_path / "out") / "checkpoint-3"
    assert swift("export", "--model", tuned, "--max_shard_size", "100KB") == 0
    target = tuned.with_name("checkpoint-3-exported")
    shards = [load_file(shard) for shard in target.glob("model-*.safetensors")]
    assert len(shards) > 2
    weights = {name: tensor for shard in shards for name, tensor in shard.items()}
    own = load_file(tuned / "model.safetensors")
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    tokenizer = AutoTokenizer.from_pretrained(target)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert "Be kind." in rendered
    assert not (target / "optimizer.safetensors").exists()


def test_what_is_damaged_on_the_way_to_the_disk_is_no_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from swiftune.models import save

    whole = save.save_model

    def and_alter(model: Any, tokenizer: Any, folder: Path, **kwargs: Any) -> None:
        whole(model, tokenizer, folder, **kwargs)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1e-4
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(save, "save_model", and_alter)
    words = ("export", "--adapters", checkpoint, "--merge_lora", "true", "--output_dir", tmp_path / "out")
    assert swift(*words) == 1
    assert "model.layers.1.mlp.up_proj.weight on the disk is not what was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_answers_otherwise_is_no_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = export_checks.reopen

    def and_alter(*args: Any, **kwargs: Any) -> Any:
        model = whole(*args, **kwargs)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight *= 1.05
        return model

    monkeypatch.setattr(export_checks, "reopen", and_alter)
    words = ("export", "--adapters", checkpoint, "--merge_lora", "true", "--output_dir", tmp_path / "out")
    assert swift(*words) == 1
    assert "does not answer as the live model does" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adapters", "CHECKPOINT"], "--adapters alone leaves nothing to do: add --merge_lora true"),
        (["--merge_lora", "true"], "--adapters is missing"),
        (["--adapters", "nowhere", "--merge_lora", "true"], "there is no such folder"),
        (
            ["--adapters", "CHECKPOINT", "--merge_lora", "true", "--output_dir", "CHECKPOINT"],
            "is what is to be exported",
        ),
        (["--adapters", "CHECKPOINT", "--merge_lora", "true", "--output_dir", "FULL"], "is there already"),
        (["--adapters", "CHECKPOINT", "--model", "LLAMA", "--merge_lora", "true"], "another base model"),
        (["--quant_method", "awq", "--quant_bits", "8"], "--quant_method awq cannot do --quant_bits 8; it does 4"),
        (["--quant_bits", "4"], "--quant_bits needs --quant_method"),
        (["--model", "QWEN", "--quant_method", "gptq"], "pip install 'swiftune[gptq]'"),
        (["--model", "QWEN", "--quant_method", "fp8"], "--quant_method fp8 needs a GPU"),
        (["--model", "QWEN", "--push_to_hub", "true"], "--push_to_hub true needs --hub_model_id"),
        (["--model", "QWEN", "--max_shard_size", "much"], "--max_shard_size"),
        (["--model", "QWEN", "--dataset", "nothing.jsonl", "--output_dir", "new"], "nothing.jsonl"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    words: list[str], said: str, checkpoint: Path, tiny_qwen2: Path, tiny_llama: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").write_text("mine")
    names = {"CHECKPOINT": checkpoint, "LLAMA": tiny_llama, "QWEN": tiny_qwen2, "FULL": full}
    code = swift("export", *(names.get(word, word) for word in words))
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert code == (1 if "pip install" in said else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (full / "precious.txt").read_text() == "mine"


def test_an_export_is_replaced_where_that_is_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    words = ("export", "--adapters", checkpoint, "--merge_lora", "true", "--output_dir", target)
    assert swift(*words) == 2
    assert swift(*words, "--exist_ok", "true") == 0
    assert (target / "model.safetensors").exists()
    assert not (target / "old.txt").exists()


def test_adapters_made_for_two_models_are_not_mixed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/another"}))
    words = ["--adapters", checkpoint, other, "--adapter_weights", "0.5,0.5", "--merge_lora", "true"]
    assert swift("export", *words, "--output_dir", tmp_path / "new") == 2
    assert "was made for" in capsys.readouterr().err


def test_a_full_disk_is_told_beforehand(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    words = ("export", "--adapters", checkpoint, "--merge_lora", "true", "--output_dir", tmp_path / "out")
    assert swift(*words) == 1
    assert "are needed" in capsys.readouterr().err


def test_weights_of_a_half_precision_model_stay_so(tmp_path: Path, data: Path) -> None:
    base = tiny.make_model(tmp_path / "base", dtype="float16")
    assert swift("export", "--model", base, "--output_dir", tmp_path / "out") == 0
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert record(tmp_path / "out")["compared_in"] == "float32"  # float16 crawls on a CPU


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_adapter_that_is_not_finite_is_not_exported(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = value
    save_file(weights, broken / "adapter_model.safetensors")
    (broken / "complete.json").unlink(missing_ok=True)
    assert swift("merge-lora", "--adapters", broken) == 2
    assert "The adapter cannot be merged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
