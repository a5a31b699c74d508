"""What is known of an exported folder once it has been opened again from the disk: ``parity.json``, ``quant.json``."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.errors import ParityError
from swiftune.recipes.rows_at_hand import Prompt
from swiftune.recipes.run_record import versions
from swiftune.runtime.console import err, say
from swiftune.runtime.units import size_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from swiftune.data.render import Renderer
    from swiftune.generate.parity import Answer, Comparison
    from swiftune.types import Row

NEW_TOKENS = 16
"""Of each greedy answer."""


@dataclass(frozen=True)
class Live:
    """What the model answered before anything was merged or written."""

    prompts: Sequence[Prompt]
    answers: Sequence[Answer]
    stop_ids: Sequence[int]


def ask(model: PreTrainedModel, prompts: Sequence[Prompt], stop_ids: Sequence[int]) -> Live:
    """Has the live model answer."""
    from swiftune.generate import parity

    model.eval()
    return Live(prompts, [parity.write(model, one.ids, stop_ids, NEW_TOKENS) for one in prompts], stop_ids)


def reopen(folder: Path, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool) -> PreTrainedModel:
    """The folder's model as Transformers opens it, without anything of ours."""
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=trust_remote_code, device_map={"": device}
    )
    return model.eval()


def check_parity(
    folder: Path,
    live: Live,
    renderer: Renderer,
    *,
    dtype: str,
    opened_in: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    source: dict[str, Any],
) -> None:
    """Opens ``folder`` from the disk, compares, and writes ``parity.json`` into it.

    Args:
        dtype: of the saved weights.
        source: what the folder was made from.

    Raises:
        ParityError: it does not answer as the live model did, or its chats are rendered to other tokens.
    """
    from swiftune.generate import parity

    _check_rendering(folder, live.prompts, renderer, trust_remote_code=trust_remote_code)
    model = reopen(folder, opened_in, device, trust_remote_code=trust_remote_code)
    found, tolerance = parity.compare(model, live.answers), parity.TOLERANCES[dtype]
    del model
    gc.collect()
    record = {
        "holds": found.within(tolerance),
        "dtype": dtype,
        "compared_in": str(opened_in).removeprefix("torch."),
        "tolerance": asdict(tolerance),
        **asdict(found),
        "new_tokens": NEW_TOKENS,
        "chats_rendered_alike": renderer.exported_template is not None and len(live.prompts),
        "source": source,
        "versions": versions(),
        "files": hashes(folder),
    }
    if not record["holds"]:
        raise ParityError(
            f"What was written does not answer as the live model does: mean KL {found.kl_mean:.2g} "
            f"(tolerance {tolerance.kl:g}), largest difference {found.max_relative_difference:.2g} standard deviations "
            f"({tolerance.difference:g}), {found.greedy_tokens_equal:.1%} of the greedy tokens equal.",
            "It has been removed. Please report this with the model's name.",
        )
    write_json(folder / "parity.json", record)
    say(_in_words(found))


def _in_words(found: Comparison) -> str:
    return (
        f"Opened again and asked {found.prompts} questions: {found.greedy_tokens_equal:.1%} of {found.places} greedy "
        f"tokens equal, mean KL {found.kl_mean:.2g}, largest difference of two logits {found.max_difference:.2g}."
    )


def _check_rendering(folder: Path, prompts: Sequence[Prompt], renderer: Renderer, *, trust_remote_code: bool) -> None:
    from transformers import AutoTokenizer

    if renderer.exported_template is None:
        return
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    for prompt in prompts:
        messages = [{key: value for key, value in one.items() if key != "loss"} for one in prompt.messages]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        if ids != prompt.ids:
            raise ParityError(
                f"The exported chat template renders {prompt.messages[-1].get('content')!r} to other tokens than "
                f"training saw: {tokenizer.decode(ids)!r} instead of {tokenizer.decode(prompt.ids)!r}.",
                "Nothing was written. Please report this with the model's name.",
            )


def report_quantized(
    folder: Path, model: PreTrainedModel, live: Live, rows: Sequence[Row], before: dict[str, float], **about: Any
) -> None:
    """Measures the quantized model, writes ``quant.json``, and shows what was saved and what it cost.

    Args:
        before: ``bytes`` and ``perplexity`` of the model that it was made from.
    """
    from rich.table import Table

    from swiftune.generate import parity
    from swiftune.models.save import weights_size

    after = {"bytes": weights_size(folder), "perplexity": perplexity_of(model, rows)}
    found = parity.compare(model, live.answers)
    table = Table("", "before", "after")
    table.add_row("weights", *(size_text(int(one["bytes"])) for one in (before, after)))
    table.add_row(f"perplexity on {len(rows)} rows", *(f"{one['perplexity']:.4g}" for one in (before, after)))
    table.add_row("greedy tokens equal", "", f"{found.greedy_tokens_equal:.1%} of {found.places}")
    table.add_row("mean KL", "", f"{found.kl_mean:.3g}")
    err().print(table)
    record = about | {"rows": len(rows), "before": before, "after": after, "compared": asdict(found)}
    write_json(folder / "quant.json", record | {"versions": versions(), "files": hashes(folder)})


def perplexity_of(model: PreTrainedModel, rows: Sequence[Row]) -> float:
    """The perplexity of ``rows``, with progress."""
    from rich.progress import track

    from swiftune.generate.parity import perplexity

    return perplexity(model, track(rows, f"perplexity on {len(rows)} rows", console=err()))


def hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in a folder."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
        found[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": digest.hexdigest()}
    return found


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Writes a record for programs and people."""
    file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
