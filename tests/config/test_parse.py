"""Command lines and files to arguments, and every way in which they can be wrong."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftune.config import Arguments, DeployArguments, InferArguments, PtArguments, SftArguments
from swiftune.config.commands import COMMANDS
from swiftune.config.compat import NOT_BUILT, RENAMED, UNNEEDED, VALUES
from swiftune.config.declare import arguments_of
from swiftune.config.parse import build, parse
from swiftune.config.values import split_name
from swiftune.errors import ArgumentsError
from swiftune.runtime import console

# The command lines that are promised to run unchanged, and what they must come to.
PROMISED: list[tuple[type[Arguments], str, dict[str, Any]]] = [
    (
        SftArguments,
        """--model Qwen/Qwen2-7B-Instruct --train_type lora
        --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#500' 'AI-ModelScope/alpaca-gpt4-data-en#500'
        'swift/self-cognition#500' --torch_dtype fp16 --num_train_epochs 1 --per_device_train_batch_size 1
        --per_device_eval_batch_size 1
        --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 --target_modules all-linear --gradient_accumulation_steps 16
        --eval_steps 50 --save_steps 50 --save_total_limit 2 --logging_steps 5 --max_length 2048 --output_dir output
        --system 'You are a helpful, witty, and culturally aware assistant.' --warmup_ratio 0.05
        --dataloader_num_workers 4""",
        {
            "model": "Qwen/Qwen2-7B-Instruct",
            "dataset": [
                "AI-ModelScope/alpaca-gpt4-data-zh#500",
                "AI-ModelScope/alpaca-gpt4-data-en#500",
                "swift/self-cognition#500",
            ],
            "torch_dtype": "float16",
            "num_train_epochs": 1.0,
            "learning_rate": 1e-4,
            "target_modules": ["all-linear"],
            "gradient_accumulation_steps": 16,
            "eval_steps": 50,
            "eval_strategy": "no",
            "system": "You are a helpful, witty, and culturally aware assistant.",
        },
    ),
    (
        SftArguments,
        """--model Qwen2.5-7B-Instruct --train_type lora --dataset self_cognition.json --torch_dtype bfloat16
        --num_train_epochs 10 --per_device_train_batch_size 1 --per_device_eval_batch_size 1 --learning_rate 1e-4
        --lora_rank 8 --lora_alpha 32 --target_modules all-linear --gradient_accumulation_steps 16 --eval_steps 50
        --save_steps 50 --save_total_limit 2 --logging_steps 5 --max_length 2048 --output_dir output
        --system 'You are a helpful assistant.' --warmup_ratio 0.05 --dataloader_num_workers 4
        --model_author swift --model_name swift-robot""",
        {"model_author": ["swift"], "model_name": ["swift-robot"], "torch_dtype": "bfloat16"},
    ),
    (
        SftArguments,
        """--model Qwen2.5-7B-Instruct --train_type lora --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#500'
        'AI-ModelScope/alpaca-gpt4-data-en#500' 'self_cognition.json' --torch_dtype bfloat16 --num_train_epochs 3
        --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --learning_rate 1e-4 --lora_rank 8
        --lora_alpha 32 --target_modules all-linear --output_dir output_mixed
        --system 'You are a helpful assistant.'""",
        {"output_dir": "output_mixed", "num_train_epochs": 3.0},
    ),
    (
        InferArguments,
        "--model Qwen2.5-7B-Instruct --model_type qwen --stream true --temperature 0 --max_new_tokens 2048",
        {"stream": True, "temperature": 0.0, "max_new_tokens": 2048},
    ),
    (
        InferArguments,
        "--adapters output/v2-20250405-1423/checkpoint-450 --stream true --temperature 0 --max_new_tokens 2048",
        {"adapters": ["output/v2-20250405-1423/checkpoint-450"], "model": None},
    ),
]


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr("swiftune.config.parse.notice", said.append)
    return said


def mistakes(command: type[Arguments], line: str) -> list[str]:
    with pytest.raises(ArgumentsError) as caught:
        parse(command, shlex.split(line))
    return caught.value.mistakes


def sft(line: str) -> SftArguments:
    return parse(SftArguments, ["--dataset", "d", *shlex.split(line)])


@pytest.mark.parametrize(("command", "line", "expected"), PROMISED)
def test_promised_lines_mean_what_they_say(command: type[Arguments], line: str, expected: dict[str, Any]) -> None:
    args = parse(command, shlex.split(line))
    assert {name: getattr(args, name) for name in expected} == expected


def test_the_promised_line_for_vllm() -> None:
    line = "--adapters output/vx-xxx/checkpoint-873 --infer_backend vllm --vllm_max_model_len 8192 --stream true"
    args = parse(InferArguments, shlex.split(line))
    assert (args.infer_backend, args.vllm_max_model_len, args.vllm_tensor_parallel_size) == ("vllm", 8192, 1)
    (said,) = mistakes(InferArguments, f"{line} --attn_impl eager")
    assert "--attn_impl eager are at odds" in said
    (said,) = mistakes(InferArguments, f"{line} --quant_method bnb")
    assert "--quant_method bnb are at odds" in said


def test_defaults_are_those_promised() -> None:
    args, full = sft(""), sft("--train_type full")
    assert (args.train_type, args.lora_rank, args.lora_alpha, args.lora_dropout) == ("lora", 8, 32, 0.05)
    assert (args.target_modules, args.learning_rate, full.learning_rate) == (["all-linear"], 1e-4, 1e-5)
    assert (args.lr_scheduler_type, args.adam_beta1, args.adam_beta2) == ("cosine", 0.9, 0.95)
    assert args.warmup_ratio > 0
    assert (args.weight_decay, args.max_grad_norm, args.max_length, args.seed) == (0.1, 1.0, 2048, 42)
    assert (args.split_dataset_ratio, args.torch_dtype) == (0.0, None)
    assert (args.loss_scale, parse(PtArguments, ["--dataset", "d"]).loss_scale) == ("default", "all")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--streaming --max_steps 3", "streaming", True),
        ("--dataset_shuffle False", "dataset_shuffle", False),
        ("--learning_rate=2E-5", "learning_rate", 2e-5),
        ("--learning-rate 2e-5", "learning_rate", 2e-5),
        ("--max_steps -1", "max_steps", -1),
        ("--system -1", "system", "-1"),
        ("--system=", "system", ""),
        ("--system=--x=y", "system", "--x=y"),
        ("--val_dataset a b:c#3 'd#5%'", "val_dataset", ["a", "b:c#3", "d#5%"]),
        ('--columns \'{"q": "query"}\'', "columns", {"q": "query"}),
        ("--lr_scheduler_kwargs '{\"min_lr\": 1e-6}'", "lr_scheduler_kwargs", {"min_lr": 1e-6}),
        ("--gradient_checkpointing", "gradient_checkpointing", True),
        ("--gradient_checkpointing auto", "gradient_checkpointing", "auto"),
        ("--gradient_checkpointing false", "gradient_checkpointing", False),
        ("--model_name 小黄 'Xiao Huang'", "model_name", ["小黄", "Xiao Huang"]),
        ("--report_to wandb tensorboard", "report_to", ["wandb", "tensorboard"]),
        ("--torch_dtype fp32", "torch_dtype", "float32"),
        ("--save_steps 7", "eval_steps", 7),
        ("--val_dataset v --save_strategy epoch", "eval_strategy", "epoch"),
        ("--predict_with_generate true", "metric_for_best_model", "rouge-l"),
        ("--predict_with_generate true", "greater_is_better", True),
        (
            "--eval_dataset q --metric rouge --metric_for_best_model eval_q_rouge-2",
            "metric_for_best_model",
            "q_rouge-2",
        ),
        ("--per_device_train_batch_size 3", "gradient_accumulation_steps", 6),
    ],
)
def test_values(line: str, name: str, value: Any) -> None:
    found = getattr(sft(line), name)
    assert (found, type(found)) == (value, type(value))


def test_a_server_has_adapters_by_name() -> None:
    args = parse(DeployArguments, ["--adapters", "code=a", "chat=b,c"])
    assert [split_name(adapter) for adapter in args.adapters] == [("code", "a"), ("chat", "b"), (None, "c")]
    assert split_name("out/lr=1/x") == (None, "out/lr=1/x")
    assert parse(DeployArguments, ["--adapters", "x=a", "y=b", "--adapter_weights", "1,2"]).adapter_weights == [1, 2]
    assert mistakes(DeployArguments, "--adapters a b x=c")[0].endswith("such as --adapter_weights 0.7,0.3.")
    assert mistakes(DeployArguments, "--adapters x=a x=b") == ["--adapters has two adapters named x."]
    assert mistakes(InferArguments, "--adapters x=a y=b")[0].endswith("such as --adapter_weights 0.7,0.3.")
    assert mistakes(DeployArguments, "--ssl_keyfile k")[0].startswith("--ssl_certfile and --ssl_keyfile go together")


def test_adapters_by_words_and_commas() -> None:
    assert parse(InferArguments, ["--adapters", "a,"]).adapters == ["a"]
    mixed = parse(InferArguments, ["--adapters", "a,b", "--adapter_weights", "0.7,0.3"])
    assert (mixed.adapters, mixed.adapter_weights) == (["a", "b"], [0.7, 0.3])
    assert mistakes(SftArguments, "--dataset d --adapters a b") == [
        "--adapters names 2 adapters: training goes on from one."
    ]
    assert mistakes(InferArguments, "--adapters a,b c") == [
        "--adapters names 3 adapters: give each a weight, such as --adapter_weights 0.7,0.3."
    ]


def test_a_system_prompt_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text("你是 {{x}}.\n", encoding="utf-8")
    assert sft(f"--system {file}").system == "你是 {{x}}."
    [sentence] = mistakes(SftArguments, f"--dataset d --system {tmp_path}/gone.txt")
    assert sentence.endswith("that file cannot be read: No such file or directory.")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "--dataset is missing: name the rows to train on, such as --dataset rows.jsonl."),
        ("--dataset d --lora_rnk 8", "--lora_rnk is unknown; did you mean --lora_rank?"),
        ("--dataset d --tunr_type lora", "--tunr_type is unknown; did you mean --train_type?"),
        ("--dataset d --qqqqqqq", "--qqqqqqq is unknown."),
        ("--dataset d --lora_rank eight", "--lora_rank takes a whole number above 0, not 'eight'."),
        ("--dataset d --lora_rank 0", "--lora_rank takes a whole number above 0, not '0'."),
        ("--dataset d --save_steps 0.5", "--save_steps takes a whole number of steps above 0, not '0.5'."),
        ("--dataset d --learning_rate nan", "--learning_rate takes a number, 0 or more, not 'nan'."),
        ("--dataset d --warmup_ratio 5", "--warmup_ratio takes a number from 0 to 1, not '5'."),
        ("--dataset d --train_type lorra", "--train_type takes lora or full, not 'lorra'; did you mean lora?"),
        ("--dataset d --use_dora maybe", "--use_dora takes true or false, not 'maybe'."),
        ("--dataset d --lora_rank", "--lora_rank needs a value: a whole number above 0."),
        ("--dataset", "--dataset needs one or more values, each a name."),
        (
            "--dataset d --system You are",
            "--system takes one value; 'are' is left over. Put quotes round a value with spaces.",
        ),
        ("--dataset d --model_name a b c", "--model_name takes TEXT [TEXT], not 3 values."),
        ("--dataset d --columns [1]", "a JSON object"),
        ("--dataset d --columns {a", "it is not JSON"),
        ("--dataset d --columns '{\"a\": NaN}'", "NaN is no JSON number"),
        ("--dataset d --target_regex '('", "--target_regex takes a regex, not '('"),
        (
            "--dataset d --train_type full --sft_type lora",
            "--train_type and --sft_type are the same argument, and say different things.",
        ),
        ("--dataset d -model m", "-model: flags begin with two dashes, --model."),
        ("stray --dataset d", "'stray' stands where a flag or a YAML or JSON file was expected"),
        ("a.yaml b.yaml --dataset d", "One file of arguments can be given, not 2: a.yaml, b.yaml."),
        ("--dataset d --config", "--config needs the name of a YAML or JSON file."),
        ("--dataset d --quant_bits 4", "--quant_bits needs --quant_method"),
        ("--dataset d --num_beams 4", "--num_beams is not built yet."),
        ("--dataset d --load_data_args true", "--load_data_args is an argument of swift infer, not of this command."),
        ("--dataset d --streaming true", "--streaming true needs --max_steps"),
        (
            "--dataset d --streaming true --max_steps 5 --split_dataset_ratio 0.1",
            "--streaming true and --split_dataset_ratio are at odds",
        ),
        ("--dataset d --use_galore true", "--use_galore true and --train_type lora are at odds"),
        (
            "--dataset d --use_galore true --train_type full --optim sgd",
            "--use_galore true and --optim sgd are at odds",
        ),
        ("--dataset d --freeze_parameters_ratio 0.5", "--freeze_parameters… and --train_type lora are at odds"),
        ("--dataset d --trainable_parameters x", "--trainable_parameters… and --train_type lora are at odds"),
        ("--dataset d --train_type full --adapters a", "--train_type full and --adapters are at odds"),
        ("--dataset d --resume_only_model true", "--resume_only_model true needs --resume_from_checkpoint."),
        ("--dataset d --attn_impl flash_attn --torch_dtype fp32", "are at odds: it needs bfloat16 or float16."),
        ("--dataset d --metric_for_best_model rouge-l", "needs --predict_with_generate true."),
        ("--dataset d --eval_dataset q.jsonl --metric_for_best_model eval_q_nonsense", "q_nonsense is none of"),
        (
            "--dataset d --eval_dataset q.jsonl --metric rouge --metric_for_best_model eval_q_rouge-3",
            "did you mean q_rouge-",
        ),
        ("--dataset d --early_stop_interval 3", "--early_stop_interval needs evaluations"),
        ("--dataset d --report_to none wandb", "--report_to none and other trackers are at odds."),
    ],
)
def test_one_mistake_one_line(line: str, expected: str) -> None:
    found = mistakes(SftArguments, line)
    assert len(found) == 1
    assert expected in found[0]
    assert "\n" not in found[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--adapters a --adapter_weights 0.5,0.5", "--adapter_weights has 2 weights for 1 adapters"),
        ("--load_data_args true", "--load_data_args true needs --adapters or --model"),
        ("--lora_rank 8", "--lora_rank is an argument of swift sft and pt, not of this command."),
    ],
)
def test_mistakes_of_inference(line: str, expected: str) -> None:
    assert [expected in sentence for sentence in mistakes(InferArguments, line)] == [True]


def test_all_mistakes_at_once_and_none_that_only_follows() -> None:
    found = mistakes(
        SftArguments, "--dataset d --lora_rnk 8 --learning_rate fast --streaming true --max_steps x --use_galore true"
    )
    assert found == [
        "--lora_rnk is unknown; did you mean --lora_rank?",
        "--learning_rate takes a number, 0 or more, not 'fast'.",
        "--max_steps takes a whole number of steps, -1 or more, not 'x'.",
        "--use_galore true and --train_type lora are at odds: GaLore needs --train_type full.",
    ]


def test_the_same_said_twice_is_no_mistake() -> None:
    assert sft("--seed 1 --seed 1 --train_type lora --sft_type lora").seed == 1


def test_the_last_of_two_counts_with_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    assert sft("--seed 1 --seed 2").seed == 2
    assert "--seed is given twice; the last one counts." in capfd.readouterr().err


def test_other_spellings_say_so(notices: list[str]) -> None:
    args = sft(
        "--sft_type full --dtype bf16 --attn_impl flash_attn --eval_batch_size 2 --packing true --use_flash_attn auto "
        "--evaluation_strategy no --metric_for_best_model eval_loss --fp16 false --quant_bits 0 --push_to_hub false"
    )
    assert (args.train_type, args.torch_dtype, args.attn_impl) == ("full", "bfloat16", "flash_attention_2")
    assert (args.per_device_eval_batch_size, args.eval_strategy, args.metric_for_best_model) == (2, "no", "loss")
    assert notices == [
        "--sft_type is --train_type here.",
        "--dtype is --torch_dtype here.",
        "--attn_impl flash_attn is --attn_impl flash_attention_2 here.",
        "--eval_batch_size is --per_device_eval_batch_size here.",
        "--packing has no effect here: rows are always packed without padding.",
        "--use_flash_attn is --attn_impl here.",
        "--evaluation_strategy is --eval_strategy here.",
        "--metric_for_best_model eval_loss is --metric_for_best_model loss here.",
        "--fp16 is --torch_dtype here.",
    ]


def test_a_notice_is_said_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_said", set())
    console.err.cache_clear()
    sft("--sft_type lora")
    sft("--sft_type lora")
    console.err.cache_clear()
    assert capsys.readouterr().err.count("--sft_type is --train_type here.") == 1


def test_the_tables_of_other_spellings_lead_somewhere() -> None:
    fields = {name for command in COMMANDS.values() for name in arguments_of(command)}
    assert set(RENAMED.values()) <= fields
    assert not fields & (RENAMED.keys() | UNNEEDED.keys() | NOT_BUILT.keys())
    assert not RENAMED.keys() & UNNEEDED.keys()
    for name, spellings in VALUES.items():
        field = RENAMED.get(name, name)
        command = next(cls for cls in COMMANDS.values() if field in arguments_of(cls))
        for value in filter(None, spellings.values()):
            assert getattr(command.model_validate({field: value}), field) == value


def test_a_file_and_a_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "# comment\nmodel: m\ndataset: [a, b]\nlearning_rate: 1e-5\nsave_strategy: no\ngradient_checkpointing: true\n"
        "columns: {q: query}\nval_dataset: v\nlora_alpha: null\nsft_type: full\nrun_name: 2024\n",
        encoding="utf-8",
    )
    for words in (
        [str(file), "--model", "n"],
        ["--config", str(file), "--model", "n"],
        ["--model=n", f"--config={file}"],
    ):
        args = parse(SftArguments, words)
        assert (args.model, args.dataset, args.val_dataset, args.learning_rate) == ("n", ["a", "b"], ["v"], 1e-5)
        assert (args.save_strategy, args.gradient_checkpointing, args.columns) == ("no", True, {"q": "query"})
        assert (args.lora_alpha, args.train_type, args.run_name) == (32, "full", "2024")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("run.yaml", "dataset: d\nlora_rnk: 8\n", ":2: lora_rnk is unknown; did you mean --lora_rank?"),
        ("run.yaml", "dataset: d\n\nlora_rank: eight\n", ":3: lora_rank takes a whole number above 0, not 'eight'."),
        ("run.yaml", "dataset: d\nlora_rank: [1, 2\n", ":3: this is not YAML"),
        ("run.yaml", "dataset: d\nmodel: a\nmodel: b\n", ":2: model and"),
        ("run.yaml", "- a\n- b\n", ": it should hold lines such as"),
        ("run.yaml", "dataset: d\nx: !!python/object:os.system {}\n", ":2: this is not YAML"),
        ("run.yaml", "dataset: {a: b}\n", ":1: dataset takes one or more values, each a name, not {'a': 'b'}."),
        ("run.yaml", "{" * 5000, "is nested too deeply."),
        ("run.json", '{"dataset": "d",\n "lora_rnk": 1}', ":2: lora_rnk is unknown; did you mean --lora_rank?"),
        ("run.json", '{"dataset": "d",\n lora: 1}', ":2: this is not JSON"),
        ("run.json", "[1]", ": it should hold an object"),
        ("run.json", '{"dataset": "d", "seed": 1, "seed": 2}', ":1: seed is given twice, with different values."),
        ("run.json", '{"dataset": ' + "[" * 100_000, "nested too deeply."),
    ],
)
def test_mistakes_in_a_file_are_told_with_the_line(tmp_path: Path, name: str, text: str, expected: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    found = mistakes(SftArguments, str(file))
    assert any(f"{file}" in sentence and expected in sentence for sentence in found), found


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert f"{tmp_path}/no.yaml cannot be read: No such file or directory." in mistakes(
        SftArguments, f"{tmp_path}/no.yaml"
    )
    (tmp_path / "latin.yaml").write_bytes("model: caf\xe9".encode("latin-1"))
    assert "latin.yaml is not UTF-8 text (byte 10)." in mistakes(SftArguments, f"{tmp_path}/latin.yaml")[0]


def test_values_of_a_program_are_checked_in_the_same_way() -> None:
    assert build(SftArguments, {"dataset": ["d"], "lora_rank": 4}).lora_rank == 4
    with pytest.raises(ArgumentsError, match="--lora_rank takes a whole number above 0, not -1"):
        build(SftArguments, {"dataset": ["d"], "lora_rank": -1})


words = st.one_of(
    st.sampled_from([f"--{name}" for name in (*arguments_of(SftArguments), *RENAMED, *UNNEEDED, "config", "quant_x")]),
    st.sampled_from(["true", "false", "1", "-1", "1e-4", "{}", '{"a": 1}', "a", "lora", "no", "", "-", "--", "x.yaml"]),
    st.text(max_size=10),
    st.text(max_size=10).map(lambda text: f"--{text}"),
    st.builds("--{}={}".format, st.sampled_from(list(arguments_of(SftArguments))), st.text(max_size=10)),
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(list(COMMANDS.values())), st.lists(words, max_size=8))
def test_whatever_is_typed_is_arguments_or_mistakes(command: type[Arguments], line: list[str]) -> None:
    try:
        args = parse(command, line)
    except ArgumentsError as error:
        told = error.mistakes
    else:
        told = ["" if isinstance(args, command) else "?"]
    assert told
    assert all("\n" not in sentence and sentence != "?" for sentence in told)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from([*arguments_of(SftArguments), *VALUES, "bf16"]), yaml_values, max_size=5))
def test_whatever_a_file_holds_is_arguments_or_mistakes(values: dict[str, Any]) -> None:
    try:
        build(SftArguments, values)
    except ArgumentsError as error:
        told = error.mistakes
    else:
        told = []
    assert all("\n" not in sentence for sentence in told)
