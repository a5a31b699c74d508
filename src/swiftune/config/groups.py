"""Arguments that training and inference share, by theme."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Len

from swiftune.config.declare import Arguments, unset
from swiftune.config.values import (
    CommaNames,
    CountOrZero,
    Dtype,
    Mapping,
    Name,
    Names,
    Positive,
    PositiveOrZero,
    Processes,
    Seed,
    Share,
    ShareBelowOne,
    TextOrFile,
    Tokens,
    Words,
)


class SourceArguments(Arguments):
    """Model: which weights, and how they are held in memory."""

    model: Name | None = unset("the built-in SmolLM2-135M-Instruct")
    """Id or folder of the model. An id is looked up as a path, among the built-ins, in `$SWIFT_LOCAL_HUB`, in the
    local caches, then on ModelScope (or on Hugging Face with --use_hf true)."""
    use_hf: bool = False
    """Download from Hugging Face instead of ModelScope."""
    model_revision: Name | None = unset("the hub's default branch")
    """Branch, tag or commit of the model on its hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for a model whose authors you trust."""


class ModelArguments(SourceArguments):
    """Model: which weights, and how they are held in memory."""

    adapters: CommaNames = []
    """Ids or folders of trained adapters (`a b` or `a,b`), for a server also with names (`code=a chat=b`). Training
    starts from the adapter's weights; to go on with an interrupted run use --resume_from_checkpoint, which then brings
    the weights."""
    torch_dtype: Dtype | None = unset("the model's own, or what this hardware computes fast")
    """Number format of weights and computation (also `fp16`, `bf16`, `fp32`)."""
    attn_impl: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = unset("sdpa")
    """Implementation of attention. The flash ones need a GPU and their package."""


class TemplateArguments(Arguments):
    """Template: how messages become tokens."""

    template: Name = "auto"
    """Chat template: `auto` takes the tokenizer's own; else a name such as `chatml`, or a .jinja file."""
    system: TextOrFile | None = unset("the template's own")
    """System prompt for rows and chats that bring none: the text, or a .txt file that holds it."""
    enable_thinking: bool | None = unset("as the template does")
    """Passed to templates that can switch a model's thinking on and off, such as Qwen3's."""


class DataArguments(Arguments):
    """Data: which rows."""

    dataset: Names = []
    """Data sets: `id_or_path[:subset][#N|#P%]`, with N rows or P percent of them. Files: json, jsonl, csv, parquet
    (also .gz, .zst), or a folder of these. The format of each row is recognised."""
    val_dataset: Names = []
    """Data sets to evaluate on, named in the same way."""
    split_dataset_ratio: ShareBelowOne = 0.0
    """Share of the rows of --dataset that is held back for evaluation where there is no --val_dataset."""
    data_seed: Seed = 42
    """Seed of sampling, splitting and shuffling rows."""
    dataset_shuffle: bool = True
    """Shuffle the rows of --dataset. With `false`, `#N` takes the first N."""
    dataset_num_proc: Processes = 1
    """Processes that prepare the rows."""
    columns: Mapping | None = unset("columns keep their names")
    """Columns to rename, from the file's name to the one understood here: '{"question": "query"}'."""
    strict: bool = False
    """Stop at the first row that cannot be used, instead of setting it aside."""
    model_name: Annotated[Words, Len(1, 2)] | None = unset("swift-robot")
    """What fills {{NAME}} in the built-in data set swift/self-cognition: one name, or the Chinese and the English."""
    model_author: Annotated[Words, Len(1, 2)] | None = unset("swift")
    """What fills {{AUTHOR}} there, likewise."""


class GenerateArguments(Arguments):
    """Generation: how answers are sampled."""

    max_new_tokens: Tokens | None = unset("until the model ends its answer or its context is full")
    """Longest answer."""
    temperature: PositiveOrZero | None = unset("the model's generation_config.json")
    """Sampling temperature; 0 always takes the likeliest token, which can be repeated exactly."""
    top_p: Share | None = unset("the model's generation_config.json")
    """Sample from the likeliest tokens that together have this probability."""
    top_k: CountOrZero | None = unset("the model's generation_config.json")
    """Sample from this many likeliest tokens; 0 from all."""
    repetition_penalty: Positive | None = unset("the model's generation_config.json")
    """Divides the logits of tokens that have occurred; 1 changes nothing."""
    stop_words: Words = []
    """Texts at which an answer ends, besides the model's own end of turn."""


class RunArguments(Arguments):
    """Run: what makes it repeatable."""

    seed: Seed = 42
    """Seed of everything random except the choice and order of rows (--data_seed)."""
