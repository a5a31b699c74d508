"""Messages to token ids and labels, and the prompt that inference feeds: token for token the same.

Every supervised turn is seen by the model exactly as inference will see it. Where the next prompt goes on from the ids
so far, the turns share one sequence; where it does not (Qwen3's template drops earlier thinking, or tokens merge over
the seam), the turn begins a sequence of its own in the same row.

The text of a special token inside a message (``<|im_end|>`` typed by somebody, or left there by an earlier rendering)
would become the token itself, here as in every engine that serves the model: such a row is set aside with that reason.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from swiftune.data import chat, encode
from swiftune.data.chat import ChatText, Turn, UnrenderableError
from swiftune.data.encode import Encoder, Ids
from swiftune.data.ledger import RowFault
from swiftune.errors import TemplateError
from swiftune.types import IGNORE, Message, Row, Sample

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

LossScale = Literal["default", "last_round", "all"]


class Renderer:
    """Renders samples with a tokenizer's own chat template.

    Args:
        tokenizer: a Transformers tokenizer.
        system: the system prompt of rows that have none of their own; None leaves it to the template.
        template_kwargs: variables for the template, such as ``enable_thinking``.
        loss_scale: which tokens are supervised: the answers of all rounds (``default``), the answers after the last
            user message (``last_round``), or everything (``all``). A message's own ``loss`` wins over the first two.
        raw: no chat template; the messages' text, one after the other, and EOS, all supervised (``swift pt``).

    Raises:
        TemplateError: the tokenizer has no template, or one that cannot be rendered by prefixes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        loss_scale: LossScale = "default",
        raw: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self._settings = {"system": system, "kwargs": dict(template_kwargs or {}), "loss": loss_scale, "raw": raw}
        self._loss_scale = loss_scale
        self._chat = None if raw else ChatText(tokenizer, system, template_kwargs)
        if raw and tokenizer.eos_token_id is None:
            raise TemplateError(f"The tokenizer of {tokenizer.name_or_path!r} has no EOS token to end a text with.")
        self._encode = Encoder(tokenizer, self._chat.control if self._chat else ())
        # SentencePiece-like tokenizers put a space before whatever they are given: an answer encoded alone would
        # begin with one that generation does not produce. Those encode prompt and answer together.
        first, second, both = self._encode.whole(["\n", "Hello", "\nHello"])
        self._splits = first + second == both

    def row(self, sample: Sample) -> Row:
        """The sample's ids and labels.

        Raises:
            RowFault: this sample cannot be rendered, or nothing in it is supervised.
        """
        (row,) = self.rows([sample])
        if isinstance(row, RowFault):
            raise row
        return row

    def rows(self, samples: Sequence[Sample]) -> list[Row | RowFault]:
        """``row`` for many samples; the tokenizer sees them at once and uses all cores."""
        if self._chat is None:
            return self._raw_rows([_plain_text(sample.messages) for sample in samples])
        prepared = [self._prepare(sample) for sample in samples]
        turns = [turn for one in prepared if not isinstance(one, RowFault) for turn in one]
        answers = [turn.response if self._splits else turn.prompt + turn.response for turn in turns]
        ids = self._encode([turn.prompt for turn in turns] + answers)
        pairs = iter(zip(ids[: len(turns)], ids[len(turns) :], strict=True))
        return [one if isinstance(one, RowFault) else self._assemble([next(pairs) for _ in one]) for one in prepared]

    def prompt(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """The ids that inference feeds for the next assistant turn.

        Raises:
            RowFault: the template refuses these messages.
        """
        if self._chat is None:
            return self._without_eos(self._encode.whole([_plain_text(messages)], add_special_tokens=True)[0])
        try:
            (ids,) = self._encode([self._chat.prompt(messages, tools)])
        except UnrenderableError as error:
            raise RowFault("cannot be rendered", str(error)) from error
        return list(map(int, ids))

    @functools.cached_property
    def stop_ids(self) -> list[int]:
        """The ids at which generation ends: EOS and the template's end of turn."""
        ids = [self.tokenizer.eos_token_id]
        if self._chat is not None:
            ids.append(self.tokenizer.convert_tokens_to_ids(self._chat.end))
        return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))

    @property
    def exported_template(self) -> str | dict[str, str] | None:
        """The chat template that renders elsewhere, without system prompt and variables given, what this renders."""
        return None if self._chat is None else self._chat.exported_template

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides what a sample is rendered to, the code included."""
        import transformers

        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        code = [Path(module).read_text(encoding="utf-8") for module in (__file__, chat.__file__, encode.__file__)]
        content = [
            self._encode.backend().to_str() if backend is not None else sorted(self.tokenizer.get_vocab().items()),
            self.tokenizer.special_tokens_map,
            None if self._chat is None else self.tokenizer.chat_template,
            self._settings,
            code,
            transformers.__version__,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _prepare(self, sample: Sample) -> list[Turn] | RowFault:
        """The texts of the sample's supervised turns."""
        assert self._chat is not None
        if held := self._chat.holds_control(sample.messages):
            token, index = held
            return RowFault(
                "text of a special token in a message",
                f"{token} in message {index + 1} ({sample.messages[index]['role']})",
            )
        supervised = self._supervised(sample.messages)
        if not supervised:
            return RowFault("nothing to learn: no assistant message that is supervised")
        try:
            return self._chat.turns(sample.messages, supervised, sample.tools)
        except UnrenderableError as error:
            return RowFault("cannot be rendered", str(error))

    def _supervised(self, messages: Sequence[Message]) -> list[int]:
        """The indices of the assistant messages that the loss is taken of."""
        last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
        after = last_user if self._loss_scale == "last_round" else -1
        indices = []
        for index, message in enumerate(messages):
            own = message.get("loss") if self._loss_scale != "all" else True
            if message["role"] == "assistant" and (index > after if own is None else own):
                indices.append(index)
        return indices

    def _assemble(self, pairs: list[tuple[Ids, Ids]]) -> Row | RowFault:
        """Lays the turns' ids into as few sequences as are true to inference.

        Args:
            pairs: for every turn the prompt's ids, and the answer's (of both together where the tokenizer cannot
                encode an answer alone).
        """
        sequences: list[Ids] = []
        spans: list[list[tuple[int, int]]] = []
        for prompt, answer in pairs:
            start = len(prompt)
            if not self._splits:
                if not np.array_equal(answer[:start], prompt):
                    return RowFault("cannot be rendered", "tokens merge over the seam between prompt and answer")
                answer = answer[start:]
            sequence = np.concatenate([prompt, answer])
            if sequences and np.array_equal(prompt[: len(sequences[-1])], sequences[-1]):
                sequences[-1] = sequence
            else:
                sequences.append(sequence)
                spans.append([])
            spans[-1].append((start, len(sequence)))
        return self._build(sequences, spans)

    def _build(self, sequences: list[Ids], spans: list[list[tuple[int, int]]]) -> Row:
        ids_T = sequences[0] if len(sequences) == 1 else np.concatenate(sequences)
        lengths = tuple(map(len, sequences))
        if self._loss_scale == "all":
            return Row(ids_T, ids_T.copy(), lengths)
        labels_T = np.full(len(ids_T), IGNORE, np.int32)
        offset = 0
        for length, own in zip(lengths, spans, strict=True):
            for start, end in own:
                labels_T[offset + start : offset + end] = ids_T[offset + start : offset + end]
            offset += length
        return Row(ids_T, labels_T, lengths)

    def _raw_rows(self, texts: Sequence[str]) -> list[Row | RowFault]:
        whole = [text if _is_unicode(text) else "" for text in texts]
        rows: list[Row | RowFault] = []
        for text, ids in zip(texts, self._encode.whole(whole, add_special_tokens=True), strict=True):
            if not _is_unicode(text):
                rows.append(RowFault("cannot be rendered", "half a surrogate pair in the text: it is no Unicode"))
            elif not text:
                rows.append(RowFault("nothing to learn: the text is empty"))
            else:
                ids_T = np.asarray([*self._without_eos(ids), self.tokenizer.eos_token_id], dtype=np.int32)
                rows.append(Row(ids_T, ids_T.copy(), (len(ids_T),)))
        return rows

    def _without_eos(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids


def _plain_text(messages: Sequence[Message]) -> str:
    return "".join(message.get("content") or "" for message in messages)


def _is_unicode(text: str) -> bool:
    """Whether the text can be encoded: JSON may hold half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_LONG = 400
"""Tokens of a run from which on its middle is left out of a preview."""


def preview(row: Row, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The row for a person to look at: what is supervised in colour, the rest dim, a legend above."""
    from rich.text import Text

    text = Text()
    text.append("learned", style="bold green")
    text.append(f" ({row.supervised} of {len(row.ids_T)} tokens)  ")
    text.append("context only", style="dim")
    start = 0
    for number, length in enumerate(row.lengths, 1):
        text.append(f"\n--- sequence {number} of {len(row.lengths)}\n" if len(row.lengths) > 1 else "\n", style="cyan")
        ids_T, learned_T = row.ids_T[start : start + length], row.labels_T[start : start + length] != IGNORE
        edges = [0, *(np.flatnonzero(np.diff(learned_T)) + 1).tolist(), length]
        for left, right in itertools.pairwise(edges):
            text.append(_shortened(ids_T[left:right], tokenizer), style="bold green" if learned_T[left] else "dim")
        start += length
    return text


def _shortened(ids_T: np.ndarray[Any, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    if len(ids_T) <= _LONG:
        return str(tokenizer.decode(ids_T.tolist()))
    head, tail = ids_T[: _LONG // 2].tolist(), ids_T[-_LONG // 2 :].tolist()
    return f"{tokenizer.decode(head)} [… {len(ids_T) - _LONG} tokens …] {tokenizer.decode(tail)}"
