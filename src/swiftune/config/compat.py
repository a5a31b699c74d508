"""What scripts written for other versions of ms-swift (and for the Trainer) say, and what it means here.

Four tables; nothing else in the program knows of these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

RENAMED: Mapping[str, str] = {
    "activation_checkpointing": "gradient_checkpointing",
    "adapter_path": "adapters",
    "additional_trainable_parameters": "trainable_parameters",
    "batch_size": "per_device_train_batch_size",
    "bf16": "torch_dtype",
    "ckpt_dir": "adapters",
    "custom_train_dataset_path": "dataset",
    "custom_val_dataset_path": "val_dataset",
    "dataset_seed": "data_seed",
    "dataset_test_ratio": "split_dataset_ratio",
    "dtype": "torch_dtype",
    "eval_batch_size": "per_device_eval_batch_size",
    "evaluation_strategy": "eval_strategy",
    "fp16": "torch_dtype",
    "load_dataset_config": "load_data_args",
    "lora_dropout_p": "lora_dropout",
    "lora_lr_ratio": "lorap_lr_ratio",
    "lora_modules_to_save": "modules_to_save",
    "lora_plus_lr_ratio": "lorap_lr_ratio",
    "lora_target_modules": "target_modules",
    "max_seq_length": "max_length",
    "model_id_or_path": "model",
    "model_name_or_path": "model",
    "neftune_alpha": "neftune_noise_alpha",
    "num_proc": "dataset_num_proc",
    "preprocess_num_proc": "dataset_num_proc",
    "server_name": "host",
    "server_port": "port",
    "sft_type": "train_type",
    "template_type": "template",
    "tuner_type": "train_type",
    "use_flash_attn": "attn_impl",
    "val_dataset_ratio": "split_dataset_ratio",
}
"""Older or newer name of a flag -> its name here."""

VALUES: Mapping[str, Mapping[str, str | None]] = {
    "attn_impl": {"flash_attn": "flash_attention_2"},
    "bf16": {"true": "bfloat16", "false": None},
    "fp16": {"true": "float16", "false": None},
    "infer_backend": {"pt": "transformers", "hf": "transformers"},
    "metric_for_best_model": {
        "eval_loss": "loss",
        "eval_acc": "acc",
        "token_acc": "acc",
        "eval_token_acc": "acc",
        "eval_rouge-1": "rouge-1",
        "eval_rouge-2": "rouge-2",
        "eval_rouge-l": "rouge-l",
        "eval_bleu-4": "bleu-4",
    },
    "optim": {"adamw_hf": "adamw_torch", "adamw": "adamw_torch"},
    "quant_bits": {"0": None},
    "template": {"default": "auto"},
    "use_flash_attn": {"true": "flash_attention_2", "false": "sdpa", "auto": None},
}
"""Flag as it is typed -> other spelling of a value -> the value here; ``None``: as if the flag were not there."""

_ALWAYS_PACKED = "rows are always packed without padding"
_FEEDING = "feeding rows to the device is the program's affair"

UNNEEDED: Mapping[str, str] = {
    "average_tokens_across_devices": "the loss is always divided by the tokens of all devices",
    "check_model": "a model folder is always checked",
    "dataloader_num_workers": "rows are tokenized before training and read from a memory map",
    "dataloader_persistent_workers": _FEEDING,
    "dataloader_pin_memory": _FEEDING,
    "dataloader_prefetch_factor": _FEEDING,
    "ddp_find_unused_parameters": "a parameter without a gradient in one process gets those of the others",
    "disable_tqdm": "there is no progress bar where the output is no terminal",
    "do_eval": "--eval_strategy decides",
    "do_train": "the command says it",
    "eval_use_evalscope": "--eval_dataset names the tasks",
    "freeze_aligner": "language models have no such part",
    "freeze_vit": "language models have no such part",
    "gradient_checkpointing_kwargs": "the way of checkpointing is the program's affair",
    "ignore_args_error": "unknown flags are always named",
    "lazy_tokenize": "tokenized rows are kept in the cache",
    "load_from_cache_file": "tokenized rows are kept in the cache, and found there by their content",
    "load_best_model_at_end": "checkpoint-best in the run's folder is the best one",
    "local_rank": "it is taken from the environment",
    "log_interval": "a server has its figures at /metrics",
    "log_level": "it changes no result",
    "model_type": "the architecture is read from the model's config.json",
    "overwrite_output_dir": "every run has a folder of its own",
    "packing": _ALWAYS_PACKED,
    "packing_length": "--max_tokens_per_batch bounds what is packed together",
    "packing_num_proc": _ALWAYS_PACKED,
    "padding_free": _ALWAYS_PACKED,
    "padding_side": _ALWAYS_PACKED,
    "remove_unused_columns": "columns that are not understood are left out",
    "save_on_each_node": "the first process saves",
    "save_safetensors": "weights are always written as safetensors",
    "safe_serialization": "weights are always written as safetensors",
    "studio_title": "the page of `swift app` is the same for all",
    "template_backend": "the tokenizer's own template is always used",
    "use_cpu": "a CPU is used where there is no GPU, or where CUDA_VISIBLE_DEVICES is empty",
    "use_logits_to_keep": "logits are computed for learned tokens only",
    "write_batch_size": "answers are written as they come",
}
"""Accepted without effect -> why nothing is lost."""

_TOKEN = "set MODELSCOPE_API_TOKEN or HF_TOKEN in the environment, where other users cannot read it"  # noqa: S105
_TRACKER = "set it in the environment, as the tracker's own documentation says"

NOT_BUILT: Mapping[str, str] = {
    "acc_strategy": "",
    "adalora_*": "",
    "agent_template": "tools are rendered by the tokenizer's own template",
    "aligner_lr": "",
    "base_url": "the page of `swift app` talks to the server that it comes from",
    "boft_*": "",
    "cached_dataset": "tokenized rows are kept in the cache by themselves",
    "create_checkpoint_symlink": "the run's folder has checkpoint-best",
    "custom_dataset_info": "give the file itself to --dataset, and name its columns with --columns",
    "custom_register_path": "",
    "dataloader_drop_last": "the last, shorter step of an epoch is taken too",
    "deepspeed": "several processes train with DDP: set NPROC_PER_NODE",
    "deepspeed_autotp_size": "",
    "device_map": "",
    "do_sample": "--temperature 0 is greedy",
    "download_mode": "",
    "enable_channel_loss": "",
    "enable_dft_loss": "",
    "eval_dataset_args": "",
    "eval_generation_config": "",
    "external_plugins": "",
    "fourier_*": "",
    "freeze_llm": "",
    "fsdp": "several processes train with DDP: set NPROC_PER_NODE",
    "fsdp_config": "",
    "galore_*": "",
    "hub_token": _TOKEN,
    "ignore_data_skip": "",
    "init_strategy": "",
    "lisa_*": "",
    "llamapro_*": "",
    "lmdeploy_*": "",
    "load_args": "what is given on the command line wins over args.json",
    "local_repo_path": "",
    "logprobs": "",
    "lora_dtype": "adapters are trained in float32",
    "lora_ga_*": "",
    "loss_type": "",
    "max_epochs": "",
    "max_memory": "",
    "max_model_len": "",
    "max_pixels": "",
    "model_kwargs": "",
    "new_special_tokens": "",
    "norm_bbox": "",
    "num_beams": "",
    "num_labels": "",
    "optimizer": "",
    "problem_type": "",
    "quant_*": "",
    "quantization_bit": "--quant_method bnb --quant_bits 4",
    "reft_*": "",
    "response_prefix": "",
    "rope_scaling": "",
    "router_aux_loss_coef": "",
    "self_cognition_sample": "use --dataset swift/self-cognition#N",
    "sequence_parallel_size": "",
    "sglang_*": "",
    "swanlab_*": _TRACKER,
    "target_parameters": "",
    "task_type": "",
    "top_logprobs": "",
    "tuner_backend": "",
    "use_chat_template": "`swift pt` trains on raw text",
    "use_flash_ckpt": "",
    "use_ray": "",
    "val_dataset_sample": "write it behind the data set's name: --val_dataset name#N",
    "val_dataset_shuffle": "",
    "vera_*": "",
    "vit_*": "",
    "vllm_*": "",
    "wandb_*": _TRACKER,
    "zero_hpz_partition_size": "",
}
"""Known (``*``: and all that begin so), but not acted upon yet -> what to do instead, if there is something."""

_MEANS_NOTHING = {"false", "none", "null", "0", "0.0", ""}
_USUAL = {
    "acc_strategy": "token",
    "num_beams": "1",
    "sequence_parallel_size": "1",
    "task_type": "causal_lm",
    "tuner_backend": "peft",
    "use_chat_template": "true",
}


def asks_nothing(value: str) -> bool:
    """Whether a value of any flag asks for nothing."""
    return value.lower() in _MEANS_NOTHING


def not_built(name: str, value: str) -> str | None:
    """The advice for a flag that is known but not built, or ``None``. Values that ask for nothing are no request."""
    if asks_nothing(value) or _USUAL.get(name) == value.lower():
        return None
    return next((advice for pattern, advice in NOT_BUILT.items() if fnmatchcase(name, pattern)), None)


def is_known(name: str) -> bool:
    """Whether ``not_built`` knows the name, whatever the value."""
    return any(fnmatchcase(name, pattern) for pattern in NOT_BUILT)
