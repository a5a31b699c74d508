"""A model folder's tokenizer, with its own chat template or the one that ``--template`` names."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.errors import ModelError, TemplateError
from swiftune.models.load import first_line
from swiftune.runtime.console import notice, warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPLATES = Path(__file__).parent / "templates"

FAMILIES = {
    **dict.fromkeys(("qwen", "qwq", "codeqwen", "yi", "internlm", "smollm", "minicpm"), "chatml"),
    **dict.fromkeys(("mistral", "mixtral"), "mistral"),
    "llama3": "llama3",
    "gemma": "gemma",
    **dict.fromkeys(
        (
            "llama",
            "deepseek",
            "glm",
            "chatglm",
            "phi",
            "baichuan",
            "ministral",
            "hunyuan",
            "cohere",
            "gpt_oss",
            "granite",
        )
    ),
}
"""What ms-swift's names for ``--template`` begin with, and which template of ours (if any) stands in where the model
has none of its own."""


def load_tokenizer(path: Path, template: str = "auto", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model folder.

    Args:
        path: the model's folder.
        template: ``auto`` keeps the tokenizer's own chat template, if it has one (raw text needs none). ``chatml`` or a
            jinja file replaces it. A family's name (``qwen2_5``, ``llama3_2``) keeps the model's own as well, and only
            where the model has none gives it ours for that family.
        trust_remote_code: whether code in the folder may run.

    Raises:
        ModelError: the folder has no usable tokenizer.
        TemplateError: the template is not known, cannot be read, or is no valid jinja.
    """
    tokenizer = _load(path, trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    text = _template_text(template, bool(tokenizer.chat_template))
    if text is not None:
        _check_syntax(template, text)
        tokenizer.chat_template = text
        _check_tokens(template, text, tokenizer)
    return tokenizer


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """The UTF-8 that a token stands for, which may begin or end in the middle of a character.

    Where its text does not have them all, they are read from its name: a character for each byte in byte-level
    vocabularies (as of GPT-2), ``<0xE4>`` in SentencePiece's.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    text = str(tokenizer.decode([token], skip_special_tokens=False))
    if "\ufffd" not in text:
        return text.encode()
    name = str(tokenizer.convert_ids_to_tokens(token))
    if single := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
        return bytes.fromhex(single[1])
    table = {character: byte for byte, character in bytes_to_unicode().items()}
    return bytes(table[c] for c in name) if table.keys() >= set(name) else text.encode()


def _load(path: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    gguf = sorted(path.glob("*.gguf"))
    kwargs = {"gguf_file": gguf[0].name} if gguf and not (path / "tokenizer.json").exists() else {}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code, **kwargs
        )
    except Exception as error:  # parsers of several formats in two languages: each has exceptions of its own
        raise ModelError(
            f"The tokenizer in {path} cannot be loaded: {first_line(error)}",
            "Fetch the model again; where the folder brings its own tokenizer code, add --trust_remote_code true.",
        ) from error
    # Without its files, Transformers makes a tokenizer of the right class that knows no words.
    if not tokenizer("Hello 1", add_special_tokens=False)["input_ids"]:
        raise ModelError(f"{path} has no tokenizer (tokenizer.json, or its older forms).", "Fetch the model again.")
    return tokenizer


def _template_text(template: str, has_own: bool) -> str | None:
    """The chat template to set, or None to leave the tokenizer as it is."""
    if template == "auto":
        return None
    if template == "chatml":
        return _builtin("chatml")
    file = Path(template)
    family = next((name for name in FAMILIES if template.lower().startswith(name)), None)
    if family is None or os.path.isfile(file) or "jinja" in file.suffix:
        return _read(file)
    if has_own:
        notice(f"--template {template}: the model's own chat template is used.")
        return None
    builtin = FAMILIES[family]
    if builtin is None:
        raise TemplateError(
            f"--template {template}: the model has no chat template of its own.",
            "Give --template chatml or a jinja file.",
        )
    notice(f"--template {template}: the model has no chat template of its own, Swiftune's {builtin} is used.")
    return _builtin(builtin)


def _builtin(name: str) -> str:
    return (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def _read(file: Path) -> str:
    known = ["auto", "chatml", *FAMILIES]
    if not os.path.isfile(file):
        near = difflib.get_close_matches(str(file), known, n=2)
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        raise TemplateError(
            f"--template {file}: no such file, and no known template.",
            f"{meant}Known are {', '.join(known)} (and names that begin so), or give a jinja file.",
        )
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"--template {file} cannot be read: {first_line(error)}") from error


def _check_syntax(template: str, text: str) -> None:
    """Parses the template with the tags that Transformers knows."""
    import jinja2

    try:
        # Parsed here for the line of a mistake; rendered only by Transformers, in its sandbox.
        jinja2.Environment(autoescape=True, extensions=["jinja2.ext.loopcontrols"]).parse(
            re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", text)
        )
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"--template {template} is no valid jinja: {error.message} in line {error.lineno}."
        ) from error


def _check_tokens(template: str, text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Says which of the template's markers this tokenizer has no token for: the model would have to spell them."""
    markers = sorted(set(re.findall(r"<\|\w+\|>|<(?:start|end)_of_turn>", text)))
    unknown = [marker for marker in markers if len(tokenizer(marker, add_special_tokens=False)["input_ids"]) != 1]
    if unknown:
        warn(
            f"--template {template}: this tokenizer has no token for {', '.join(unknown)}, and spells out "
            "in plain text what marks the turns."
        )
