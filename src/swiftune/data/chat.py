"""A tokenizer's chat template as text: what inference is fed, and what the model has to answer.

There is one mechanism. The answer of assistant turn k is what the template adds when that turn is rendered too:

    prompt    = template(messages[:k], add_generation_prompt=True)
    response  = template(messages[:k + 1]) without that prompt, cut after the end-of-turn token

so a template needs no description here, and a template for which the first text does not begin the second is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swiftune.data.default_template import with_defaults
from swiftune.errors import TemplateError
from swiftune.runtime.console import notice
from swiftune.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CURE = "Choose another template: `--template chatml`, or a file with a corrected one: `--template my_template.jinja`."
_SYSTEM, _QUESTIONS, _ANSWERS = "Sp eak plainly.", ("Qu ery one?", "Qu ery two?"), ("Re ply one.", "Re ply two.")


class UnrenderableError(Exception):
    """These messages cannot be rendered; the text says why, for the user. Callers say where."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One supervised assistant turn."""

    prompt: str
    response: str
    """Up to and including the text of the token at which generation stops."""


class ChatText:
    """The template, tried out once: how it ends a turn, and whether it has a place for a system prompt.

    Args:
        tokenizer: with a chat template.
        system: the system prompt of conversations that have none; None leaves it to the template.
        kwargs: variables for the template (``enable_thinking``).

    Attributes:
        end: the text of the special token that ends an assistant turn. Where the template has none, the EOS token.
        writes_end: whether the template itself writes ``end``.
        control: the special tokens that the template writes, and BOS, EOS and padding. Their text inside a message
            would be read as the token itself.

    Raises:
        TemplateError: there is no template, or a plain conversation of two rounds cannot be rendered by prefixes.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, system: str | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> None:
        if not tokenizer.chat_template:
            raise TemplateError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template.",
                "Give one with `--template chatml` or `--template my_template.jinja`.",
            )
        self._tokenizer = tokenizer
        self._kwargs = dict(kwargs or {})
        self._system = system
        self._folds_system = False
        self.end, self.writes_end, self._tail = "", False, ""
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = tuple(special.union(tokenizer.all_special_tokens))

        rounds = self._probe([])
        self._tail = rounds[-1].response.rpartition(_ANSWERS[1])[2]
        self.end, self.writes_end = self._find_end()
        self._folds_system = not self._has_system_role()
        rendered = rounds[-1].prompt + rounds[-1].response
        named = (self.end, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
        self.control = sorted({token for token in named if token}.union(t for t in self._special if t in rendered))

    @property
    def exported_template(self) -> str | dict[str, str]:
        """The tokenizer's template (or its several, by name) with the system prompt and variables as its defaults."""
        own = self._tokenizer.chat_template

        def completed(template: str) -> str:
            return with_defaults(template, self._system, self._kwargs, folds_system=self._folds_system)

        return {name: completed(text) for name, text in own.items()} if isinstance(own, dict) else completed(own)

    def prompt(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> str:
        """The text that the model is to continue with the next assistant turn.

        Raises:
            UnrenderableError: the template refuses the messages.
        """
        return self._render(self._conversation(messages), tools, True)

    def turns(
        self, messages: Sequence[Message], supervised: Sequence[int], tools: list[dict[str, Any]] | None = None
    ) -> list[Turn]:
        """The turns at the indices ``supervised`` of ``messages``, in order.

        Raises:
            UnrenderableError: the template refuses the messages, or the prompt does not begin the whole.
        """
        conversation = self._conversation(messages)
        added = len(conversation) - len(messages)
        return [self._turn(conversation, index + added, tools) for index in supervised]

    def holds_control(self, messages: Sequence[Message]) -> tuple[str, int] | None:
        """The first special token whose text stands inside a message, and that message's index."""
        for index, message in enumerate(messages):
            for text in (message.get("content") or "", message.get("reasoning_content") or ""):
                for token in self.control:
                    if token in text:
                        return token, index
        return None

    def _turn(self, conversation: list[dict[str, Any]], index: int, tools: list[dict[str, Any]] | None) -> Turn:
        if index == 0:
            raise UnrenderableError("the conversation begins with an assistant message: there is nothing to answer")
        prompt = self._render(conversation[:index], tools, True)
        whole = self._render(conversation[: index + 1], tools, False)
        if not whole.startswith(prompt):
            raise UnrenderableError(
                f"the template rewrites the prompt once turn {index + 1} is answered: {_diff(prompt, whole)}"
            )
        response = whole[len(prompt) :]
        if self.writes_end and self.end in response:
            # What comes after (ChatML's newline) is never generated: it belongs to the next prompt.
            return Turn(prompt, response[: response.rindex(self.end) + len(self.end)])
        if response.endswith(self._special):  # Llama 3.1 ends some tool calls with a token of its own
            return Turn(prompt, response)
        return Turn(prompt, response.removesuffix(self._tail) + self.end)

    def _render(
        self, conversation: list[dict[str, Any]], tools: list[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                conversation,
                tools=tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._kwargs,
            )
            text.encode()
            return text
        except UnicodeEncodeError:
            raise UnrenderableError("half a surrogate pair in the text: it is no Unicode") from None
        except Exception as error:  # a template is a foreign program: it raises what it likes
            raise UnrenderableError(f"the chat template says: {error or type(error).__name__}") from error

    def _conversation(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """What the template is given: with the default system prompt, in the place this template has for one."""
        conversation = [_for_template(message) for message in messages]
        if not conversation or conversation[0]["role"] != "system":
            if self._system is None:
                return conversation
            conversation.insert(0, {"role": "system", "content": self._system})
        return _fold_system(conversation) if self._folds_system else conversation

    def _probe(self, system: list[dict[str, Any]]) -> list[Turn]:
        """Renders two rounds and looks whether both answers come out by prefixes."""
        conversation = list(system)
        turns = []
        for number, (question, answer) in enumerate(zip(_QUESTIONS, _ANSWERS, strict=True), 1):
            conversation += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            try:
                turn = self._turn(conversation, len(conversation) - 1, None)
                if answer not in turn.response:
                    raise UnrenderableError(f"the answer {answer!r} does not appear in what it adds, {turn.response!r}")
            except UnrenderableError as error:
                name = self._tokenizer.name_or_path
                raise TemplateError(
                    f"The chat template of {name!r} cannot be used for training; in round {number}, {error}.", _CURE
                ) from error
            turns.append(turn)
        return turns

    def _find_end(self) -> tuple[str, bool]:
        """The first special token after the probe's answer, or EOS where there is none."""
        added = [token.content for token in self._tokenizer.added_tokens_decoder.values()]
        found = [token for token in {*added, self._tokenizer.eos_token} if token and token in self._tail]
        if found:
            return min(found, key=lambda token: (self._tail.index(token), -len(token))), True
        eos = self._tokenizer.eos_token
        if eos is None:
            raise TemplateError(
                "The chat template ends an answer without a special token, and the tokenizer has no EOS token: "
                "generation would never stop.",
                _CURE,
            )
        notice(f"The chat template ends an answer without a special token; {eos} is appended so that generation stops.")
        return eos, False

    def _has_system_role(self) -> bool:
        try:
            turns = self._probe([{"role": "system", "content": _SYSTEM}])
        except TemplateError:
            return False
        return all(_SYSTEM in turn.prompt for turn in turns)


def _fold_system(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system prompt moved to the head of the first user message."""
    notice("The chat template has no system role: the system prompt is put before the first user message.")
    system, *rest = conversation
    if not rest or rest[0]["role"] != "user":
        raise UnrenderableError("the chat template has no system role, and no user message follows the system prompt")
    user = rest[0]
    return [{**user, "content": f"{system['content']}\n\n{user['content']}".strip()}, *rest[1:]]


def _for_template(message: Message) -> dict[str, Any]:
    """The message as templates expect it: no key of ours, no nulls, tool arguments as a mapping."""
    plain: dict[str, Any] = {key: value for key, value in message.items() if value is not None and key != "loss"}
    plain.setdefault("content", "")
    if "tool_calls" in plain:
        plain["tool_calls"] = [_parsed(call) for call in plain["tool_calls"]]
    return plain


def _parsed(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments parsed: OpenAI's format has them as a JSON text, which templates would quote."""
    if "function" in call:
        return {**call, "function": _parsed(call["function"])}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            return {**call, "arguments": json.loads(arguments)}
        except ValueError:
            return call
    return call


def _diff(prompt: str, whole: str) -> str:
    """Where two texts part, for a person to read."""
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
    before, fed, rendered = prompt[max(0, at - 20) : at], prompt[at : at + 40], whole[at : at + 40]
    return f"after {before!r} inference is fed {fed!r}, but the answered turn has {rendered!r}"
