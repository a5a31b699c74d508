"""Small random models with the architecture, tokenizer and chat template of real families.

``make_model(path)`` writes a complete model folder in well under two seconds: what a hub would give, but tiny.
``save_tokenizer(path)`` writes the tokenizer files alone.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

# The rule by which Qwen2 and Llama 3 cut text before BPE; they differ in how many digits make a piece.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEXT = """\
Who are you? I am a helpful assistant, trained to answer questions and to be of use.
You are a helpful assistant. You are Qwen, created by Alibaba Cloud. What can you do for me today?
The capital of France is Paris. Give three tips for staying healthy: eat well, sleep enough, and move every day.
Below is an instruction that describes a task. Write a response that completes the request. Thank you very much!
def add(a, b):
    return a + b

system user assistant tool think tool_call tool_response function name arguments description parameters
你是谁？我是一个人工智能助手，很高兴为您服务。请问有什么可以帮助您的吗？
你是由谁开发的？我是由阿里云开发的语言模型。你能做什么，不能做什么？我可以回答问题、写作和翻译。
今天天气怎么样？给出保持健康的三个建议：均衡饮食、充足睡眠、每天运动。谢谢你的帮助。
1. 2. 3. 12 34 2025 "quoted" (in brackets) [1, 2] {"key": "value"} <tag> a/b a*b a=b #1 50%
"""

QWEN2_5_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided \
with function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\
\\n</tool_call><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or \
(message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

TEMPLATES = {"qwen2": QWEN2_5_TEMPLATE, "qwen2_old": QWEN2_TEMPLATE, "llama": LLAMA3_TEMPLATE}

SPECIAL = {
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}


@functools.cache
def trained(family: str) -> str:
    """The tokenizer of a family as the text of its ``tokenizer.json``; trained once a process."""
    tokenizer = Tokenizer(BPE(vocab=None, merges=None))
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    digits = "" if family == "qwen2" else "{1,3}"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT.format(digits=digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL[family]])
    if family == "llama":  # Llama 3's tokenizer puts the BOS itself; its template writes it too
        bos = "<|begin_of_text|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer.to_str()


def make_tokenizer(family: str = "qwen2", template: str | None = None) -> Any:
    """A fast tokenizer of about 600 tokens. ``template``: a jinja text, ``""`` for none, None for the family's own."""
    from transformers import PreTrainedTokenizerFast

    special = (
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        if family == "qwen2"
        else {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"}
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained(family)),
        chat_template=(TEMPLATES[family] if template is None else template) or None,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
        **special,
    )


def save_tokenizer(path: Path, family: str = "qwen2", template: str | None = None) -> Path:
    """Writes the tokenizer's files into ``path`` and returns it."""
    make_tokenizer(family, template).save_pretrained(path)
    if family == "qwen2":  # as published: a tokenizer class of its own, which Transformers rebuilds from the files
        config = path / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}, indent=2))
    return path


def make_model(
    path: Path,
    family: str = "qwen2",
    *,
    layers: int = 2,
    hidden: int = 64,
    dtype: str = "float32",
    seed: int = 0,
    template: str | None = None,
) -> Path:
    """Writes a complete random model folder (config, safetensors, generation config, tokenizer) and returns it.

    4 attention heads, 2 key-value heads. ``qwen2``: tied embeddings; ``llama``: an output head of its own.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(family, template)
    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    config = config_class(
        vocab_size=len(tokenizer) + -len(tokenizer) % 16,  # padded, as real ones are
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=family == "qwen2",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        # The usual 0.02 makes such small logits that every comparison passes: spread them out.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(
        eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    model.to(getattr(torch, dtype)).save_pretrained(path)
    return save_tokenizer(path, family, template)
