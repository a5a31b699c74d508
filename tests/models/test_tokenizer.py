from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from swiftune.data.render import Renderer
from swiftune.errors import ModelError, TemplateError
from swiftune.models.tokenizer import FAMILIES, load_tokenizer, token_bytes
from swiftune.runtime import console
from swiftune.types import Place, Sample
from tests import tiny
from tests.data import chats

ROUNDS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A Qwen2 tokenizer without a chat template."""
    return tiny.save_tokenizer(tmp_path / "bare", template="")


@pytest.fixture(autouse=True)
def _say_again() -> None:
    console._said.clear()


def test_own_template(tiny_qwen2: Path, tiny_llama: Path) -> None:
    assert load_tokenizer(tiny_qwen2).chat_template == tiny.QWEN2_5_TEMPLATE
    assert load_tokenizer(tiny_llama).chat_template == tiny.LLAMA3_TEMPLATE


@pytest.mark.parametrize("name", ["qwen", "qwen2_5", "llama3_2", "deepseek_r1"])
def test_a_family_keeps_the_models_own(name: str, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_tokenizer(tiny_qwen2, name).chat_template == load_tokenizer(tiny_qwen2).chat_template
    assert f"--template {name}: the model's own chat template is used." in capsys.readouterr().err


def test_chatml_and_files_replace_it(tiny_qwen2: Path, tmp_path: Path) -> None:
    own, chatml = load_tokenizer(tiny_qwen2), load_tokenizer(tiny_qwen2, "chatml")
    with_system = [{"role": "system", "content": "S"}, *ROUNDS]
    assert chatml.apply_chat_template(with_system, tokenize=False, add_generation_prompt=True) == (
        own.apply_chat_template(with_system, tokenize=False, add_generation_prompt=True)
    )
    assert "You are Qwen" not in chatml.apply_chat_template(ROUNDS, tokenize=False)
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    mine = load_tokenizer(tiny_qwen2, str(tmp_path / "mine.jinja"))
    assert mine.apply_chat_template(ROUNDS, tokenize=False) == "Hello"


def test_no_template(bare: Path) -> None:
    tokenizer = load_tokenizer(bare)
    Renderer(tokenizer, raw=True)
    with pytest.raises(TemplateError, match="no chat template.*--template chatml"):
        Renderer(tokenizer)
    Renderer(load_tokenizer(bare, "chatml"))
    assert load_tokenizer(bare, "qwen2_5").chat_template == load_tokenizer(bare, "chatml").chat_template
    with pytest.raises(TemplateError, match="--template chatml"):
        load_tokenizer(bare, "deepseek")


@pytest.mark.parametrize("kind", ["llama3", "mistral_v1", "gemma", "smollm2"])
def test_ours_render_as_the_published(kind: str, tmp_path: Path) -> None:
    """Where ours stands in for a family's, the same chat gives the same text."""
    published = chats.tokenizer(kind)
    published.save_pretrained(tmp_path / "published")
    chats.tokenizer(kind, "").save_pretrained(tmp_path / "bare")
    ours = load_tokenizer(tmp_path / "bare", kind)
    messages = [{"role": "system", "content": "S"}, *ROUNDS] if kind in ("llama3", "smollm2") else ROUNDS
    for upto in range(1, len(messages) + 1, 2):
        expected = published.apply_chat_template(messages[:upto], tokenize=False, add_generation_prompt=True)
        text = ours.apply_chat_template(messages[:upto], tokenize=False, add_generation_prompt=True)
        # Mistral's tokenizers differ in whether the answer's space is text; ours writes it, as theirs from 0.2 on.
        assert text.replace("[/INST] ", "[/INST]") == expected.replace("[/INST] ", "[/INST]")


@pytest.mark.parametrize("name", sorted({name for name in FAMILIES.values() if name}))
def test_ours_can_be_trained_with(name: str, tmp_path: Path) -> None:
    kind = {"chatml": "qwen2", "mistral": "mistral_v1"}.get(name, name)
    chats.tokenizer(kind, "").save_pretrained(tmp_path)
    family = next(family for family, builtin in FAMILIES.items() if builtin == name)
    renderer = Renderer(load_tokenizer(tmp_path, family), system="Be brief.")
    row = renderer.row(Sample(ROUNDS, Place("x", 1)))  # type: ignore[arg-type]
    assert len(row.lengths) == 1
    assert (row.labels_T >= 0).sum() > 4


def test_markers_that_are_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats.tokenizer("llama3", "").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, "chatml")
    said = capsys.readouterr().err
    assert "no token for <|im_end|>, <|im_start|>" in said
    row = Renderer(tokenizer).row(Sample(ROUNDS, Place("x", 1)))  # type: ignore[arg-type]
    assert (row.ids_T == tokenizer.eos_token_id).sum() == 2  # generation still stops


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chatlm", "chatml?"),
        ("missing.jinja", "no such file"),
        ("qwen_mine.jinja", "no such file"),
    ],
)
def test_unknown_templates(name: str, said: str, bare: Path) -> None:
    with pytest.raises(TemplateError) as error:
        load_tokenizer(bare, name)
    assert said in str(error.value)


def test_a_file_that_is_no_template(bare: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.jinja"
    file.write_text("{{ bos_token }}\n{% for m in messages %}", encoding="utf-8")
    with pytest.raises(TemplateError, match="no valid jinja.*in line 2"):
        load_tokenizer(bare, str(file))
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TemplateError, match="cannot be read"):
        load_tokenizer(bare, str(file))
    file.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "utf-8")
    load_tokenizer(bare, str(file))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def _missing(file: Path) -> None:
    file.unlink()


def _remote(file: Path) -> None:
    config = file.with_name("tokenizer_config.json")
    content = json.loads(config.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    config.write_text(json.dumps(content | {"tokenizer_class": "Evil"}))
    file.with_name("evil.py").write_text("raise SystemExit('this code must not run')")
    file.unlink()


@pytest.mark.parametrize("damage", [_cut, _missing, _remote])
def test_folders_without_a_usable_tokenizer(damage: Callable[[Path], None], tiny_qwen2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen2, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    damage(folder / "tokenizer.json")
    with pytest.raises(ModelError, match=r"tokenizer") as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 400


def test_padding_is_always_there(tmp_path: Path) -> None:
    chats.tokenizer("gemma").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<eos>"


def test_the_bytes_of_tokens_make_up_the_text() -> None:
    text = "A 你好 😀\ufffd<|im_end|>"
    byte_level = tiny.make_tokenizer()
    ids = byte_level(text).input_ids
    assert any("\ufffd" in byte_level.decode([token]) for token in ids)
    assert b"".join(token_bytes(byte_level, token) for token in ids) == text.encode()
    fallback = Tokenizer(BPE({"A": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}, [], byte_fallback=True))
    fallback.decoder = decoders.ByteFallback()
    sentencepiece = PreTrainedTokenizerFast(tokenizer_object=fallback)
    ids = sentencepiece("A你", add_special_tokens=False).input_ids
    assert len(ids) == 4
    assert b"".join(token_bytes(sentencepiece, token) for token in ids) == "A你".encode()
