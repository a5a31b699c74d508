"""Arguments that are right one by one but not together. A rule is a function from the arguments to what is wrong, if
anything; it holds for every command that has the arguments it names, and is skipped where one of them is wrong already.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from swiftune.config.declare import Arguments
from swiftune.config.evaluating import FIGURES, task_figures
from swiftune.config.quantization import BITS
from swiftune.config.values import either, nearest, split_name

Rule = Callable[[Any], "str | None"]
_RULES: list[tuple[tuple[str, ...], Rule]] = []


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule about these arguments."""

    def register(check: Rule) -> Rule:
        _RULES.append((names, check))
        return check

    return register


def broken(args: Arguments, wrong: Collection[str] = ()) -> list[str]:
    """What is wrong with these arguments together, a sentence each. Rules about the ``wrong`` ones are skipped."""
    fields = type(args).model_fields
    apply = (check for names, check in _RULES if all(name in fields and name not in wrong for name in names))
    return [sentence for check in apply if (sentence := check(args))]


@rule("train_type", "dataset")
def training_needs_rows(args: Any) -> str | None:
    return None if args.dataset else "--dataset is missing: name the rows to train on, such as --dataset rows.jsonl."


@rule("show_rows", "dataset")
def inspecting_needs_rows(args: Any) -> str | None:
    return None if args.dataset else "--dataset is missing: name the rows to look at, such as --dataset rows.jsonl."


@rule("streaming", "max_steps")
def a_stream_has_no_end(args: Any) -> str | None:
    if args.streaming and args.max_steps <= 0:
        return "--streaming true needs --max_steps: how many rows will come is not known."
    return None


@rule("streaming", "split_dataset_ratio", "val_dataset")
def a_stream_cannot_be_split(args: Any) -> str | None:
    if args.streaming and args.split_dataset_ratio and not args.val_dataset:
        return (
            "--streaming true and --split_dataset_ratio are at odds: name the rows to evaluate on with --val_dataset."
        )
    return None


@rule("streaming", "filter_duplicates", "balance")
def a_stream_is_not_known_beforehand(args: Any) -> str | None:
    flags = {"filter_duplicates": args.filter_duplicates is not False, "balance": args.balance != "none"}
    asked = [f"--{name}" for name, on in flags.items() if on]
    if args.streaming and asked:
        return f"--streaming true and {' and '.join(asked)} are at odds: all rows have to be known before the first."
    return None


@rule("streaming", "interleave_prob", "dataset")
def interleaving_needs_a_stream(args: Any) -> str | None:
    if not args.interleave_prob:
        return None
    if not args.streaming:
        return "--interleave_prob needs --streaming true; without it, choose how many rows of each set with NAME#N."
    if len(args.interleave_prob) != len(args.dataset) or abs(sum(args.interleave_prob) - 1) > 1e-6:
        return f"--interleave_prob takes one number for each of {len(args.dataset)} data sets, which together make 1."
    return None


@rule("adapters", "train_type")
def one_adapter_is_trained(args: Any) -> str | None:
    if len(args.adapters) > 1:
        return f"--adapters names {len(args.adapters)} adapters: training goes on from one."
    return None


@rule("adapters", "adapter_weights")
def weights_of_adapters(args: Any) -> str | None:
    unnamed = [name for name, _ in map(split_name, args.adapters) if name is None]
    by_name = hasattr(args, "served_model_name") and len(unnamed) <= 1  # a server has each under its own name
    if len(args.adapters) > 1 and not args.adapter_weights and not by_name:
        return f"--adapters names {len(args.adapters)} adapters: give each a weight, such as --adapter_weights 0.7,0.3."
    if args.adapter_weights and len(args.adapter_weights) != len(args.adapters):
        weights, adapters = len(args.adapter_weights), len(args.adapters)
        return f"--adapter_weights has {weights} weights for {adapters} adapters: give one for each of --adapters."
    return None


@rule("infer_backend", "attn_impl")
def vllm_attends_in_its_own_way(args: Any) -> str | None:
    if args.infer_backend == "vllm" and args.attn_impl:
        return f"--infer_backend vllm and --attn_impl {args.attn_impl} are at odds: vLLM chooses for itself."
    return None


@rule("infer_backend", "quant_method")
def vllm_quantizes_nothing(args: Any) -> str | None:
    if args.infer_backend == "vllm" and args.quant_method:
        return (
            f"--infer_backend vllm and --quant_method {args.quant_method} are at odds: vLLM takes weights as they are."
        )
    return None


@rule("adapters")
def names_of_adapters(args: Any) -> str | None:
    names = [name for name, _ in map(split_name, args.adapters) if name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    return f"--adapters has two adapters named {twice}." if twice is not None else None


@rule("ssl_certfile", "ssl_keyfile")
def tls_needs_both(args: Any) -> str | None:
    if (args.ssl_certfile is None) != (args.ssl_keyfile is None):
        return "--ssl_certfile and --ssl_keyfile go together: a certificate and its key."
    return None


@rule("load_data_args", "adapters", "model")
def data_arguments_of_which_run(args: Any) -> str | None:
    if args.load_data_args and not (args.adapters or args.model):
        return "--load_data_args true needs --adapters or --model: the run whose data arguments are meant."
    return None


@rule("train_type", "adapters")
def full_training_of_an_adapter(args: Any) -> str | None:
    if args.train_type == "full" and args.adapters:
        return "--train_type full and --adapters are at odds: an adapter is trained with --train_type lora."
    return None


@rule("resume_only_model", "resume_from_checkpoint")
def resume_from_what(args: Any) -> str | None:
    if args.resume_only_model and not args.resume_from_checkpoint:
        return "--resume_only_model true needs --resume_from_checkpoint."
    return None


@rule("train_type", "use_galore")
def galore_is_for_full_training(args: Any) -> str | None:
    if args.use_galore and args.train_type != "full":
        return "--use_galore true and --train_type lora are at odds: GaLore needs --train_type full."
    return None


@rule("use_galore", "optim")
def galore_is_an_optimizer(args: Any) -> str | None:
    if args.use_galore and args.optim != "adamw_torch":
        return f"--use_galore true and --optim {args.optim} are at odds: GaLore is a form of AdamW."
    return None


@rule("train_type", "freeze_parameters", "freeze_parameters_regex", "freeze_parameters_ratio")
def freezing_is_for_full_training(args: Any) -> str | None:
    given = args.freeze_parameters or args.freeze_parameters_regex or args.freeze_parameters_ratio
    if args.train_type == "lora" and given:
        return "--freeze_parameters… and --train_type lora are at odds: LoRA freezes all weights of the model."
    return None


@rule("train_type", "trainable_parameters", "trainable_parameters_regex")
def trainable_is_for_full_training(args: Any) -> str | None:
    if args.train_type == "lora" and (args.trainable_parameters or args.trainable_parameters_regex):
        return "--trainable_parameters… and --train_type lora are at odds: name whole modules with --modules_to_save."
    return None


@rule("attn_impl", "torch_dtype")
def flash_needs_half_precision(args: Any) -> str | None:
    if (args.attn_impl or "").startswith("flash") and args.torch_dtype == "float32":
        return f"--attn_impl {args.attn_impl} and --torch_dtype float32 are at odds: it needs bfloat16 or float16."
    return None


@rule("metric_for_best_model", "predict_with_generate", "eval_dataset", "metric")
def best_by_what_there_is(args: Any) -> str | None:
    name, scores, always = args.metric_for_best_model, (*FIGURES["rouge"], *FIGURES["bleu"]), ("loss", "acc")
    tasks = task_figures(args.eval_dataset, args.metric)
    if name in (*always, *tasks):
        return None
    if name in scores:
        needs = f"--metric_for_best_model {name} needs --predict_with_generate true."
        return None if args.predict_with_generate else needs
    known = [*always, *scores, *tasks]
    near = nearest(name, known)
    return f"--metric_for_best_model {name} is none of {either(known)}{near and f'; did you mean {near}?'}"


@rule("metric", "judge_url", "judge_model")
def a_judge_is_somewhere(args: Any) -> str | None:
    if "judge" in args.metric and not (args.judge_url and args.judge_model):
        return "--metric judge needs --judge_url and --judge_model."
    return None


@rule("eval_samples", "eval_dataset")
def evaluating_needs_tasks(args: Any) -> str | None:
    return (
        None if args.eval_dataset else "--eval_dataset is missing: name a task such as gsm8k, or a file of questions."
    )


@rule("eval_samples", "temperature")
def several_answers_that_differ(args: Any) -> str | None:
    if args.eval_samples > 1 and args.temperature == 0:
        return (
            f"--eval_samples {args.eval_samples} with --temperature 0 gives equal answers: set a higher --temperature."
        )
    return None


@rule("compare", "adapters")
def compared_models_are_named_once(args: Any) -> str | None:
    if args.compare and args.adapters:
        return "--compare and --adapters are at odds: name the adapters behind --compare."
    return None


@rule("compare", "eval_backend")
def the_harness_compares_nothing(args: Any) -> str | None:
    if args.compare and args.eval_backend == "lm_eval":
        return "--compare and --eval_backend lm_eval are at odds: evaluate each model by itself."
    return None


@rule("early_stop_interval", "eval_strategy", "val_dataset", "split_dataset_ratio")
def stopping_needs_evaluation(args: Any) -> str | None:
    if args.early_stop_interval and args.eval_strategy == "no":
        return "--early_stop_interval needs evaluations: give --val_dataset or --split_dataset_ratio."
    return None


@rule("report_to")
def reporting_to_none_only(args: Any) -> str | None:
    if "none" in args.report_to and len(args.report_to) > 1:
        return "--report_to none and other trackers are at odds."
    return None


@rule("quant_method", "quant_bits")
def bits_of_a_method(args: Any) -> str | None:
    if args.quant_bits and not args.quant_method:
        return "--quant_bits needs --quant_method, such as --quant_method bnb."
    if args.quant_method and args.bits not in BITS[args.quant_method]:
        able = ", ".join(map(str, BITS[args.quant_method]))
        return f"--quant_method {args.quant_method} cannot do --quant_bits {args.bits}; it does {able}."
    return None


@rule("train_type", "quant_method")
def quantized_weights_are_not_trained(args: Any) -> str | None:
    if args.train_type == "full" and args.quant_method:
        return (
            f"--train_type full and --quant_method {args.quant_method} are at odds: quantized weights stay as they are."
        )
    return None


@rule("merge_lora", "adapters", "quant_method", "push_to_hub")
def something_to_export(args: Any) -> str | None:
    if args.merge_lora and not args.adapters:
        return "--adapters is missing: name the checkpoint whose update is to be merged."
    if args.adapters and not (args.merge_lora or args.quant_method or args.push_to_hub):
        return "--adapters alone leaves nothing to do: add --merge_lora true, --quant_method or --push_to_hub true."
    return None


@rule("adapters", "merge_lora", "quant_method", "push_to_hub")
def one_adapter_is_pushed(args: Any) -> str | None:
    if len(args.adapters) > 1 and not (args.merge_lora or args.quant_method) and args.push_to_hub:
        return "--push_to_hub takes one adapter; several are merged first: --merge_lora true."
    return None


@rule("push_to_hub", "hub_model_id")
def pushing_needs_a_place(args: Any) -> str | None:
    return "--push_to_hub true needs --hub_model_id org/name." if args.push_to_hub and not args.hub_model_id else None
