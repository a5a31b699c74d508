"""What training and inference open in the same way: the model's folder, its tokenizer, and how chats are rendered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune import hub
from swiftune.config import SourceArguments
from swiftune.errors import AdapterError
from swiftune.hub.builtin import MODEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swiftune.data.render import LossScale, Renderer


@dataclass(frozen=True)
class Opened:
    """A model's folder, opened as far as it goes without its weights."""

    folder: Path
    config: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer

    def rendering(self, system: str | None, enable_thinking: bool | None) -> Renderer:
        """A renderer with another default system prompt, for inference."""
        from swiftune.data.render import Renderer

        return Renderer(self.tokenizer, system=system, template_kwargs=_thinking(enable_thinking))

    @property
    def dtype(self) -> str | None:
        """The dtype that the model's configuration names."""
        return self.config.get("dtype") or self.config.get("torch_dtype")


def open_tokenizer(
    args: SourceArguments,
    *,
    loss_scale: LossScale = "default",
    raw: bool | None = False,
    adapters: Sequence[Path] = (),
) -> Opened:
    """Finds the model and opens its tokenizer.

    Args:
        args: with the template's arguments beside the model's.
        loss_scale: which tokens are supervised; of no matter to inference.
        raw: render texts as they are, without a chat template (``swift pt``); None: where the model has none.
        adapters: the first that brings a tokenizer, with tokens of its own, brings the one that is used.
    """
    chat: Any = args  # whoever opens a model has the template's arguments, too
    from swiftune.data.render import Renderer
    from swiftune.models.load import check_folder
    from swiftune.models.tokenizer import load_tokenizer

    folder = hub.find_model(args.model, use_hf=args.use_hf, revision=args.model_revision)
    check_folder(folder)
    own = next((path for path in adapters if (path / "tokenizer.json").exists()), folder)
    tokenizer = load_tokenizer(own, template=chat.template, trust_remote_code=args.trust_remote_code)
    thinking = _thinking(chat.enable_thinking)
    if raw is None:
        raw = not tokenizer.chat_template
    renderer = Renderer(tokenizer, system=chat.system, template_kwargs=thinking, loss_scale=loss_scale, raw=raw)
    config = folder / "config.json"
    return Opened(folder, json.loads(config.read_text("utf-8")) if config.exists() else {}, tokenizer, renderer)


def adds_tokens(adapter: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an adapter brings a tokenizer with tokens that this one lacks.

    Raises:
        AdapterError: its tokenizer cannot be read.
    """
    file = adapter / "tokenizer.json"
    if not file.exists():
        return False
    known = tokenizer.get_vocab()
    try:
        added = {token["content"]: token["id"] for token in json.loads(file.read_text("utf-8"))["added_tokens"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise AdapterError(f"{file} cannot be read: {error}.", "Take another checkpoint.") from error
    return any(known.get(token) != number for token, number in added.items())


def model_name(args: SourceArguments) -> str:
    """What the model is called: the last part of its id or folder."""
    return Path(args.model).name if args.model else MODEL


def _thinking(enable: bool | None) -> dict[str, bool]:
    return {} if enable is None else {"enable_thinking": enable}
