from __future__ import annotations

import itertools
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftune.data.ledger import RowFault
from swiftune.data.render import Renderer, preview
from swiftune.errors import TemplateError
from swiftune.runtime import console
from swiftune.types import IGNORE, Message, Place, Row, Sample
from tests.data import chats

PLACE = Place("rows.jsonl", 1)
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}]


def chat(*texts: str, system: str | None = None) -> list[Message]:
    """Rounds of user and assistant, told apart by their order."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for index, text in enumerate(texts):
        messages.append({"role": "assistant" if index % 2 else "user", "content": text})
    return messages


def sample(messages: list[Message], tools: Any = None) -> Sample:
    return Sample(messages, PLACE, tools)


def marked(row: Row, tokenizer: Any) -> list[str]:
    """The sequences as text, what is supervised between « and »."""
    texts, start = [], 0
    for length in row.lengths:
        ids, labels = row.ids_T[start : start + length], row.labels_T[start : start + length]
        start += length
        learned = labels != IGNORE
        assert (labels[learned] == ids[learned]).all()
        edges = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), length]
        text = ""
        for left, right in itertools.pairwise(edges):
            # A token is never decoded alone: a prefix space would be lost, and bytes torn apart.
            piece = tokenizer.decode(ids[:right].tolist())[len(tokenizer.decode(ids[:left].tolist())) :]
            text += f"«{piece}»" if learned[left] else piece
        texts.append(text)
    return texts


SYSTEM_SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
SYSTEM_QWEN2 = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
SYSTEM_QWEN25 = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
CHATML_ROUNDS = (
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n«I am X.<|im_end|>»\n"
    "<|im_start|>user\n你是谁？<|im_end|>\n<|im_start|>assistant\n«我是X。<|im_end|>»"
)
ROUNDS = ("Who are you?", "I am X.", "你是谁？", "我是X。")
LLAMA_ROUNDS = (
    "<|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n«I am X.<|eot_id|>»"
    "<|start_header_id|>user<|end_header_id|>\n\n你是谁？<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n«我是X。<|eot_id|>»"
)
THOUGHT = ("Q1", "<think>\nT1\n</think>\n\nA1", "Q2", "<think>\nT2\n</think>\n\nA2")

# kind, system in the row, system by default, template variables, texts, the sequences expected
TABLE: list[tuple[str, str | None, str | None, dict[str, Any], tuple[str, ...], list[str]]] = [
    ("qwen2", None, None, {}, ROUNDS, [SYSTEM_QWEN2 + CHATML_ROUNDS]),
    ("qwen2_5", None, None, {}, ROUNDS, [SYSTEM_QWEN25 + CHATML_ROUNDS]),
    ("qwen2_5", None, "Be brief.", {}, ROUNDS, ["<|im_start|>system\nBe brief.<|im_end|>\n" + CHATML_ROUNDS]),
    ("qwen2_5", "Row's own.", "Be brief.", {}, ROUNDS, ["<|im_start|>system\nRow's own.<|im_end|>\n" + CHATML_ROUNDS]),
    ("smollm2", None, None, {}, ROUNDS, [SYSTEM_SMOL + CHATML_ROUNDS]),
    ("llama3", None, None, {}, ROUNDS, ["<|begin_of_text|>" + LLAMA_ROUNDS]),
    (
        "llama3",
        None,
        "Be brief.",
        {},
        ROUNDS,
        ["<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>" + LLAMA_ROUNDS],
    ),
    (  # earlier thinking is dropped from the prompt, so the second round is a sequence of its own
        "qwen3",
        None,
        None,
        {},
        THOUGHT,
        [
            "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n«<think>\nT1\n</think>\n\nA1<|im_end|>»",
            "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
            "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n«<think>\nT2\n</think>\n\nA2<|im_end|>»",
        ],
    ),
    (
        "qwen3",
        None,
        "S",
        {},
        ("Q1", "A1"),
        [
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n"
            "«<think>\n\n</think>\n\nA1<|im_end|>»"
        ],
    ),
    (  # with thinking switched off, inference is fed the empty thought, so it is not learned
        "qwen3",
        None,
        None,
        {"enable_thinking": False},
        ("Q1", "A1"),
        ["<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n«A1<|im_end|>»"],
    ),
    (
        "mistral_v1",
        None,
        None,
        {},
        ROUNDS,
        ["<s>[INST] Who are you? [/INST]«I am X.</s>»[INST] 你是谁？ [/INST]«我是X。</s>»"],
    ),
    (
        "mistral_v1",
        None,
        "Be brief.",
        {},
        ROUNDS,
        ["<s>[INST] Be brief.\n\nWho are you? [/INST]«I am X.</s>»[INST] 你是谁？ [/INST]«我是X。</s>»"],
    ),
    (  # this one forgets the system prompt once it is answered: folded by us instead
        "mistral_v3",
        "Be brief.",
        None,
        {},
        ROUNDS,
        ["<s>[INST] Be brief.\n\nWho are you?[/INST]« I am X.</s>»[INST] 你是谁？[/INST]« 我是X。</s>»"],
    ),
    (
        "gemma",
        "Be brief.",
        None,
        {},
        ROUNDS,
        [
            "<bos><start_of_turn>user\nBe brief.\n\nWho are you?<end_of_turn>\n<start_of_turn>model\n"
            "«I am X.<end_of_turn>»\n<start_of_turn>user\n你是谁？<end_of_turn>\n<start_of_turn>model\n"
            "«我是X。<end_of_turn>»"
        ],
    ),
]


@pytest.mark.parametrize(("kind", "own", "default", "kwargs", "texts", "expected"), TABLE)
def test_table(kind: str, own: Any, default: Any, kwargs: Any, texts: Any, expected: list[str]) -> None:
    tokenizer = chats.tokenizer(kind)
    renderer = Renderer(tokenizer, system=default, template_kwargs=kwargs)
    assert marked(renderer.row(sample(chat(*texts, system=own))), tokenizer) == expected


def test_ids_written_out() -> None:
    """By hand, token for token: ids of bytes are those of the byte-level alphabet, where ``!`` is 0."""
    tokenizer = chats.tokenizer("llama3")
    row = Renderer(tokenizer).row(sample(chat("#", "+")))
    names = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    bos, start, end, eot = (tokenizer.convert_tokens_to_ids(name) for name in names)
    newlines = tokenizer.convert_tokens_to_ids("ĊĊ")
    newlines = [newlines] if newlines is not None else [198, 198]
    user, assistant = (tokenizer(word)["input_ids"] for word in ("user", "assistant"))
    prompt = [bos, start, *user, end, *newlines, 2, eot, start, *assistant, end, *newlines]
    assert row.ids_T.tolist() == [*prompt, 10, eot]
    assert row.labels_T.tolist() == [IGNORE] * len(prompt) + [10, eot]
    assert row.lengths == (len(prompt) + 2,)


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_5", "smollm2", "llama3", "mistral_v1", "gemma"])
def test_append_only_templates_equal_plain_transformers(kind: str) -> None:
    tokenizer = chats.tokenizer(kind)
    messages = chat(*ROUNDS, "And 12 + 34?", "It is 46, of course.")
    ids = Renderer(tokenizer).row(sample(messages)).ids_T.tolist()
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    assert whole[: len(ids)] == ids
    assert tokenizer.decode(whole[len(ids) :]).strip() == ""
    assert ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token is not None)


# Bits that are hard: newlines and spaces at the seams, marks cut in two, other families' marks, letters that combine.
BITS = st.sampled_from(
    ["Hello", "你好", " ", "\n", "\n\n", "\t", "\r\n", "🙂", "é", "e\u0301", "\u0301", "\u200d", "'s", "12", ".",
     "<|im_", "end|>", "<|im_end|>", "[/INST]", "[INST] ", "</s>", "<end_of_turn>",
     "<think>", "</think>", "▁", "<0x0A>", "\x00"]
)  # fmt: skip
TEXT = st.lists(BITS | st.text(max_size=4, alphabet=st.characters(exclude_categories=["Cs"])), max_size=6).map("".join)
CONVERSATION = st.tuples(st.none() | TEXT, st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
RENDERERS = {kind: Renderer(chats.tokenizer(kind)) for kind in chats.KINDS}


@pytest.mark.parametrize("kind", chats.KINDS)
@settings(max_examples=60, deadline=None)
@given(conversation=CONVERSATION)
def test_every_answer_follows_the_prompt_of_inference(kind: str, conversation: Any) -> None:
    system, rounds = conversation
    messages = chat(*(text for pair in rounds for text in pair), system=system)
    renderer = RENDERERS[kind]
    (row,) = renderer.rows([sample(messages)])
    if isinstance(row, RowFault) and row.reason == "text of a special token in a message":
        assert any(token in message["content"] for message in messages for token in renderer._chat.control)
        return
    if isinstance(
        row, RowFault
    ):  # tokens that merge over the seam, or a template that cuts an answer: never trained on
        assert row.reason == "cannot be rendered"
        assert kind == "qwen3" or not renderer._splits
        return
    assert isinstance(row, Row)
    learned_spans, start = [], 0
    for length in row.lengths:
        ids, labels = row.ids_T[start : start + length].tolist(), row.labels_T[start : start + length]
        mask = np.concatenate([[False], labels != IGNORE, [False]])
        edges = np.flatnonzero(np.diff(mask)).reshape(-1, 2)
        learned_spans += [(ids[:left], ids[left:right]) for left, right in edges]
        start += length
    answered = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(learned_spans) == len(answered)
    for index, (before, learned) in zip(answered, learned_spans, strict=True):
        assert before == renderer.prompt(messages[:index])
        assert learned[-1] in renderer.stop_ids
        if kind != "qwen3":  # it takes thoughts apart and puts them together
            text = unicodedata.normalize("NFC", messages[index]["content"]).strip()
            decoded = renderer.tokenizer.decode(learned[:-1])
            assert kind.startswith("mistral") or text == unicodedata.normalize("NFC", decoded).strip()


def test_which_answers_are_learned() -> None:
    tokenizer = chats.tokenizer("qwen2")
    messages = chat("q1", "a1", "q2", "a2")
    last = Renderer(tokenizer, loss_scale="last_round").row(sample(messages))
    (text,) = marked(last, tokenizer)
    assert "a1<|im_end|>\n" in text
    assert text.endswith("«a2<|im_end|>»")
    assert text.count("«") == 1
    first: list[Message] = [*messages[:3], {"role": "assistant", "content": "a2", "loss": False}]
    (text,) = marked(Renderer(tokenizer).row(sample(first)), tokenizer)
    assert text == SYSTEM_QWEN2 + "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n«a1<|im_end|>»"
    everything = Renderer(tokenizer, loss_scale="all").row(sample(messages))
    assert (everything.labels_T == everything.ids_T).all()
    silent: list[Message] = [messages[0], {"role": "assistant", "content": "a", "loss": False}]
    with pytest.raises(RowFault, match="nothing to learn"):
        Renderer(tokenizer).row(sample(silent))


def test_a_tail_without_an_answer_is_left_out() -> None:
    tokenizer = chats.tokenizer("smollm2")
    renderer = Renderer(tokenizer)
    whole, cut = renderer.row(sample(chat("q", "a", "and?"))), renderer.row(sample(chat("q", "a")))
    assert whole.ids_T.tolist() == cut.ids_T.tolist()


def test_tools_and_several_answers_in_a_row() -> None:
    tokenizer = chats.tokenizer("qwen2_5")
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages: list[Message] = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "Wait."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "2."},
    ]
    (text,) = marked(Renderer(tokenizer).row(sample(messages, TOOLS)), tokenizer)
    head, _, rest = text.partition("<|im_start|>user\n1+1?")
    assert '{"type": "function", "function": {"name": "add"' in head
    assert rest == (
        "<|im_end|>\n<|im_start|>assistant\n«Wait.<|im_end|>»\n<|im_start|>assistant\n"
        '«<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>»\n'
        "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n«2.<|im_end|>»"
    )


def test_one_bad_row_does_not_touch_the_others() -> None:
    tokenizer = chats.tokenizer("gemma")
    renderer = Renderer(tokenizer)
    good, twice, typed = chat("q", "a"), chat("q", "a"), chat("what is <end_of_turn>?", "a mark")
    twice.insert(0, {"role": "user", "content": "two in a row"})
    rows = renderer.rows([sample(good), sample(twice), sample(typed), sample(chat("q", "\ud800")), sample(good)])
    assert isinstance(rows[0], Row)
    assert isinstance(rows[4], Row)
    assert rows[0].ids_T.tolist() == rows[4].ids_T.tolist()
    faults = [str(fault) for fault in rows[1:4]]
    assert "Conversation roles must alternate" in faults[0]
    assert faults[1] == "text of a special token in a message: <end_of_turn> in message 1 (user)"
    assert "surrogate" in faults[2]


def test_an_assistant_message_first_is_a_fault_of_the_row() -> None:
    with pytest.raises(RowFault, match="nothing to answer"):
        Renderer(chats.tokenizer("qwen3")).row(sample([{"role": "assistant", "content": "a"}]))


def test_raw_text() -> None:
    tokenizer = chats.tokenizer("llama3", "")
    renderer = Renderer(tokenizer, raw=True)
    text = "One text, as it is.\n"
    row = renderer.row(sample([{"role": "assistant", "content": text}]))
    assert row.ids_T.tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert (row.labels_T == row.ids_T).all()
    assert renderer.prompt([{"role": "user", "content": text}]) == row.ids_T.tolist()[:-1]
    with pytest.raises(RowFault, match="empty"):
        renderer.row(sample([{"role": "assistant", "content": ""}]))


def test_raw_text_of_a_tokenizer_that_puts_bos_itself() -> None:
    from tests import tiny

    tokenizer = tiny.make_tokenizer("llama")
    ids = Renderer(tokenizer, raw=True).row(sample([{"role": "assistant", "content": "hi"}])).ids_T.tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    assert Renderer(tokenizer).prompt(chat("hi")).count(tokenizer.bos_token_id) == 1


NO_END = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"  # noqa: E501


def test_eos_is_appended_where_the_template_ends_no_turn(capsys: pytest.CaptureFixture[str]) -> None:
    console._said.clear()
    tokenizer = chats.tokenizer("qwen2", NO_END)
    row = Renderer(tokenizer).row(sample(chat("q", "a", "r", "b")))
    assert marked(row, tokenizer) == [
        "user: q\nassistant: «a<|im_end|>»",
        "user: q\nassistant: a\nuser: r\nassistant: «b<|im_end|>»",
    ]
    assert "<|im_end|> is appended" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "has no chat template"),
        ("{{ raise_exception('not for you') }}", "in round 1, the chat template says: not for you"),
        ("{{ messages | length }}", "inference is fed '1'"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "does not appear"),
        (  # DeepSeek R1's way: the prompt opens a thought that the answered turn does not have
            "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
            "{% if add_generation_prompt %}assistant<think>{% endif %}",
            "in round 1, the template rewrites the prompt",
        ),
        (
            "{% if messages | length > 3 %}!{% endif %}{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
            "{% if add_generation_prompt %}assistant{% endif %}",
            "in round 2, the template rewrites the prompt",
        ),
    ],
)
def test_templates_that_are_refused(template: str, said: str) -> None:
    with pytest.raises(TemplateError) as error:
        Renderer(chats.tokenizer("qwen2", template))
    assert said in str(error.value)
    assert "--template chatml" in error.value.cure


def test_prompts_refused_by_the_template() -> None:
    with pytest.raises(RowFault, match="must alternate"):
        RENDERERS["gemma"].prompt([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


def test_stop_ids() -> None:
    tokenizer = chats.tokenizer("gemma")
    assert Renderer(tokenizer).stop_ids == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]


def test_padded_calls_leave_no_trace() -> None:
    tokenizer = chats.tokenizer("qwen2_5")
    tokenizer.pad_token = "<|endoftext|>"
    renderer = Renderer(tokenizer)
    before = [row.ids_T.tolist() for row in renderer.rows([sample(chat("q", "a")), sample(chat("long " * 9, "b"))])]
    tokenizer(["a", "a long one"], padding=True, truncation=True, max_length=3)
    after = [row.ids_T.tolist() for row in renderer.rows([sample(chat("q", "a")), sample(chat("long " * 9, "b"))])]
    assert before == after


def test_fingerprint_changes_with_what_decides() -> None:
    tokenizer = chats.tokenizer("qwen3")
    other = chats.tokenizer("qwen3")
    other.add_tokens(["quark"])
    renderers = [
        Renderer(tokenizer),
        Renderer(tokenizer, system="S"),
        Renderer(tokenizer, template_kwargs={"enable_thinking": False}),
        Renderer(tokenizer, loss_scale="last_round"),
        Renderer(tokenizer, raw=True),
        Renderer(other),
        Renderer(chats.tokenizer("qwen3", chats.SMOLLM2)),
    ]
    assert len({renderer.fingerprint for renderer in renderers}) == len(renderers)
    assert Renderer(chats.tokenizer("qwen3")).fingerprint == renderers[0].fingerprint


def test_preview_colours_what_is_learned() -> None:
    tokenizer = chats.tokenizer("qwen3")
    text = preview(Renderer(tokenizer).row(sample(chat(*THOUGHT))), tokenizer)
    learned = [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)]
    assert learned == ["learned", *(f"{answer}<|im_end|>" for answer in THOUGHT[1::2])]
    assert "sequence 2 of 2" in text.plain
    long = preview(Renderer(tokenizer).row(sample(chat("word " * 2000, "a"))), tokenizer)
    assert len(long.plain) < 3000
