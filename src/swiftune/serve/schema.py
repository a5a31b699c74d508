"""What a request may hold. A field that is not named here is refused, and so is one that would be without effect where
it should have one; fields in ``Harmless`` change no answer and are taken without a word.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from swiftune.errors import UsageError
from swiftune.generate.engine import Sampling
from swiftune.types import Message

Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Json = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class TextPart(_Strict):
    """A part of a message. There are only texts."""

    type: Literal["text", "input_text"] = "text"
    text: str


class Called(_Strict):
    """A function's name, and its arguments as JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(_Strict):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Called
    index: int | None = None


class ChatMessage(_Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None

    def plain(self) -> Message:
        """The message as templates take it.

        Raises:
            UsageError: the arguments of a tool call are no JSON object.
        """
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        message = Message(role="system" if self.role == "developer" else self.role, content=content)
        if self.tool_calls:
            message["tool_calls"] = [
                {**({"id": call.id} if call.id else {}), "type": "function", "function": _function(call.function)}
                for call in self.tool_calls
            ]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.name:
            message["name"] = self.name
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        return message


class Function(_Strict):
    """What a tool is for, and the JSON schema of what it takes."""

    name: str
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(_Strict):
    """A function that the model may call."""

    type: Literal["function"] = "function"
    function: Function


def _tool(value: Json) -> Json:
    """The value as it is, its keys in their order, which templates write; if it is a tool."""
    Tool.model_validate(value)
    return value


class StreamOptions(_Strict):
    """Of a stream."""

    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False
    include_obfuscation: bool = False


class TextFormat(_Strict):
    """The only format there is."""

    type: Literal["text"]


class Harmless(_Strict):
    """Fields of OpenAI's that change no answer."""

    user: str | None = None
    store: bool | None = None
    metadata: Json | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class AnswerRequest(Harmless):
    """What both kinds of request have."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=1024)
    max_tokens: Annotated[int, Field(gt=0, lt=2**31)] | None = None
    n: Annotated[int, Field(gt=0)] | None = None
    stop: Stop | list[Stop] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> AnswerRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the tokens it took."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def longest(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_tokens

    @property
    def stop_words(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, default: Sampling, vocabulary: int, limit: int) -> Sampling:
        """How this request's answers are drawn; what it leaves open is the server's ``default``.

        Raises:
            UsageError: a token in logit_bias that the vocabulary does not have.
        """
        biases = tuple((_token(key, vocabulary), bias) for key, bias in (self.logit_bias or {}).items())
        return Sampling(
            max_new_tokens=min(self.longest or default.max_new_tokens or limit, limit),
            temperature=_or(self.temperature, default.temperature),
            top_p=_or(self.top_p, default.top_p),
            top_k=_or(None if self.top_k is None else max(self.top_k, 0), default.top_k),
            min_p=_or(self.min_p, default.min_p),
            repetition_penalty=_or(self.repetition_penalty, default.repetition_penalty),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            stop=tuple(dict.fromkeys(default.stop + self.stop_words)),
            seed=None if self.seed is None else self.seed % 2**63,
            logit_bias=biases,
        )


class ChatRequest(AnswerRequest):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(gt=0, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: list[Annotated[Json, AfterValidator(_tool)]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    response_format: TextFormat | None = None

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """The engine's ``logprobs``."""
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def offered(self) -> list[Json] | None:
        """The tools as templates take them."""
        return None if self.tool_choice == "none" else self.tools or None


def _prompts(value: Any) -> Any:
    """One prompt, as the list that it is one of."""
    single = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    return [value] if single else value


Prompt = Annotated[str, Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(AnswerRequest):
    """Body of /v1/completions."""

    prompt: Annotated[list[Prompt], Field(min_length=1), BeforeValidator(_prompts, json_schema_input_type=Any)]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def likeliest(self) -> int | None:
        """The engine's ``logprobs``."""
        return self.logprobs


class LoadAdapterRequest(_Strict):
    """Body of /v1/load_lora_adapter."""

    lora_name: Annotated[str, Field(max_length=64)]
    lora_path: Annotated[str, Field(max_length=4096)]


class UnloadAdapterRequest(_Strict):
    """Body of /v1/unload_lora_adapter."""

    lora_name: Annotated[str, Field(max_length=64)]


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _token(key: str, vocabulary: int) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocabulary):
        raise UsageError(f"logit_bias names {key[:20]!r}, which is no token's id.")
    return int(key)


def _function(called: Called) -> Json:
    try:
        arguments = json.loads(called.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise UsageError(f"The arguments of the call of {called.name[:64]} are no JSON object.")
    return {"name": called.name, "arguments": arguments}
