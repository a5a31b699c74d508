"""``swift export`` and ``swift merge-lora``: from a checkpoint to a folder that any program opens, or to a hub.

model + adapters ──merge──► model ──save──► folder ──open again──► the same answers? ──► quantize ──► push
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune import hub
from swiftune.config import ExportArguments
from swiftune.errors import ModelError, OutputError, ParityError, UsageError
from swiftune.hub import builtin
from swiftune.recipes import export_checks as checks
from swiftune.recipes.checkpoint_args import resolve
from swiftune.recipes.opening import Opened, open_tokenizer
from swiftune.recipes.rows_at_hand import prompts_of, rows_of, samples_at_hand
from swiftune.runtime import hardware
from swiftune.runtime.console import say, warn
from swiftune.runtime.paths import lock_of, locked, staged
from swiftune.runtime.units import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from swiftune.types import Sample

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "args.json", "*token*", "*.jinja", "README.md")


@dataclass(frozen=True)
class _Source:
    """What is exported."""

    args: ExportArguments
    opened: Opened
    adapters: list[Path]
    samples: Sequence[Sample]
    device: torch.device
    dtype: str
    """Of the weights that are written."""
    opened_in: torch.dtype
    """What they are computed with here."""

    @property
    def about(self) -> dict[str, Any]:
        """For the record."""
        weights = self.args.adapter_weights or [1.0] * len(self.adapters)
        adapters = [
            {"path": str(path), "weight": weight, "sha256": checks.hashes(path)["adapter_model.safetensors"]["sha256"]}
            for path, weight in zip(self.adapters, weights, strict=True)
        ]
        return {"model": self.args.model or builtin.MODEL, "adapters": adapters, "system": self.args.system}


def export(args: ExportArguments) -> None:
    """The whole of both commands.

    Raises:
        SwiftuneError: see ``errors``; ParityError where what was written is not what it was made from.
    """
    from swiftune.models import quantize

    device = hardware.device()
    if args.quant_method:
        quantize.check(args, device.type)
    resolved = resolve(args, as_held=False)
    args, adapters = resolved.args, resolved.adapters
    if adapters and not (args.merge_lora or args.quant_method):
        _push(args, adapters[0], _ADAPTER_FILES)
        return
    opened = open_tokenizer(args, raw=None, adapters=adapters)
    target = _target(args, opened, adapters)
    dtype, opened_in = _dtypes(args, opened, device)
    source = _Source(args, opened, adapters, samples_at_hand(args, resolved.home), device, dtype, opened_in)
    _check_room(source, target)
    with _written(target, exist_ok=args.exist_ok) as folder:
        if args.quant_method:
            _quantize(source, folder)
        else:
            _merge(source, folder)
    say(f"The model is in {target}")
    if args.push_to_hub:
        _push(args, target)


def _merge(source: _Source, folder: Path) -> checks.Live:
    """Writes the merged model into ``folder``, opens it again, and compares."""
    from swiftune import tuners
    from swiftune.models.load import load_model
    from swiftune.models.save import save_model, unlike_saved

    args, opened, renderer = source.args, source.opened, source.opened.renderer
    model = load_model(
        opened.folder,
        dtype=source.opened_in,
        attn_impl=args.attn_impl,
        device=source.device,
        trust_remote_code=args.trust_remote_code,
    )
    tuned: Any = tuners.load_adapters(model, source.adapters, args.adapter_weights)
    prompts = prompts_of(source.samples, renderer, args.max_length)
    live = checks.ask(tuned, prompts, renderer.stop_ids)
    merged = (tuners.merge(tuned) if source.adapters else tuned).to(_torch_dtype(source.dtype))
    save_model(
        merged,
        opened.tokenizer,
        folder,
        chat_template=renderer.exported_template,
        stop_ids=renderer.stop_ids,
        max_shard_size=args.max_shard_size,
    )
    if odd := next(unlike_saved(merged, folder), None):
        raise ParityError(f"{odd} on the disk is not what was written there.", "It has been removed; check the disk.")
    del model, tuned, merged
    gc.collect()
    checks.check_parity(
        folder,
        live,
        renderer,
        dtype=source.dtype,
        opened_in=source.opened_in,
        device=source.device,
        trust_remote_code=args.trust_remote_code,
        source=source.about,
    )
    return live


def _quantize(source: _Source, folder: Path) -> None:
    """Writes the quantized model into ``folder``, by way of the merged one in a folder beside it."""
    from swiftune.models import quantize
    from swiftune.models.load import load_model
    from swiftune.models.save import save_model, save_tokenizer, weights_size

    args, opened = source.args, source.opened
    rows = rows_of(source.samples, opened.renderer, args)
    with _aside(folder / "merged") as merged:
        live = _merge(source, merged)
        model = checks.reopen(merged, source.opened_in, source.device, trust_remote_code=args.trust_remote_code)
        before = {"bytes": weights_size(merged), "perplexity": checks.perplexity_of(model, rows)}
        del model
        gc.collect()
        if args.quant_method in ("gptq", "awq"):
            quantize.by_calibration(args, merged, [row.ids_T.tolist() for row in rows], folder)
            save_tokenizer(opened.tokenizer, folder, opened.renderer.exported_template)
        else:
            made = load_model(
                merged,
                dtype=source.opened_in,
                device=source.device,
                trust_remote_code=args.trust_remote_code,
                quantization=quantize.while_loading(args, source.opened_in),
            )
            save_model(
                made,
                opened.tokenizer,
                folder,
                chat_template=opened.renderer.exported_template,
                stop_ids=opened.renderer.stop_ids,
                max_shard_size=args.max_shard_size,
            )
            del made
            gc.collect()
        shutil.copy(merged / "parity.json", folder / "parity.json")
    quantized = checks.reopen(folder, source.opened_in, source.device, trust_remote_code=args.trust_remote_code)
    about = {"quant_method": args.quant_method, "quant_bits": args.bits, "source": source.about}
    checks.report_quantized(folder, quantized, live, rows, before, **about)


def _dtypes(args: ExportArguments, opened: Opened, device: torch.device) -> tuple[str, torch.dtype]:
    """The dtype that is written, and the one computed with: float32 where the first is slow here, or not the model's.

    Raises:
        ModelError: the model's weights are quantized.
    """
    if opened.config.get("quantization_config"):
        raise ModelError(
            f"The model in {opened.folder} is quantized; it cannot be merged into, nor quantized again.",
            "Name the unquantized model with --model.",
        )
    own = opened.dtype if opened.dtype in hardware.DTYPES else "float32"
    wanted = args.torch_dtype or str(own)
    fast, _ = hardware.choose_dtype(wanted, None, device)
    same = wanted == own and fast == _torch_dtype(wanted)
    return wanted, fast if same else _torch_dtype("float32")


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _target(args: ExportArguments, opened: Opened, adapters: Sequence[Path]) -> Path:
    """The folder that is written.

    Raises:
        UsageError: it is there already, or is what is exported.
    """
    suffix = {None: "merged" if adapters else "exported", "fp8": "fp8"}.get(
        args.quant_method, f"{args.quant_method}-int{args.bits}"
    )
    if args.output_dir:
        target = Path(os.path.expanduser(args.output_dir))
    elif adapters:
        target = adapters[0].with_name(f"{adapters[0].resolve().name}-{suffix}")
    elif args.model and os.path.isdir(args.model):
        target = opened.folder.with_name(f"{opened.folder.resolve().name}-{suffix}")
    else:
        target = Path(f"{(args.model or builtin.MODEL).rsplit('/', 1)[-1]}-{suffix}")
    if target.resolve() in {path.resolve() for path in (opened.folder, *adapters)}:
        raise UsageError(f"--output_dir {target} is what is to be exported.", "Name another folder.")
    if os.path.lexists(target) and not (target.is_dir() and (args.exist_ok or not any(target.iterdir()))):
        raise UsageError(
            f"--output_dir {target} is there already.", "Name another folder, or replace it with --exist_ok true."
        )
    return target


def _check_room(source: _Source, target: Path) -> None:
    """Tells what will be written, and refuses where the disk has less.

    Raises:
        OutputError: there is no room.
    """
    from swiftune.models.save import weights_size

    here = next(folder for folder in target.absolute().parents if folder.is_dir())
    own, written = (_torch_dtype(str(name)).itemsize for name in (source.opened.dtype or source.dtype, source.dtype))
    need = weights_size(source.opened.folder) * written // own
    if source.args.quant_method:
        need += need * source.args.bits // (8 * written)
    free = shutil.disk_usage(here).free
    say(f"Writes about {size_text(need)} to {target}; {size_text(free)} are free.", style="dim")
    if need > free:
        raise OutputError(
            f"{here} has {size_text(free)} free, and about {size_text(need)} are needed.",
            "Make room, or name another --output_dir.",
        )


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder for as long as the block lasts."""
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _written(target: Path, *, exist_ok: bool) -> Iterator[Path]:
    """A folder beside ``target`` that gets its name when all is written and checked, or vanishes."""
    from safetensors import SafetensorError

    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock_of(target), f"writing {target}"), staged(target) as folder:
            yield folder
            if target.is_dir() and any(target.iterdir()) and not exist_ok:
                raise UsageError(f"--output_dir {target} has appeared meanwhile.", "Name another folder.")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{target} could not be written: {reason}.", "Is the disk full?") from error


def _push(args: ExportArguments, folder: Path, patterns: Sequence[str] | None = None) -> None:
    name = str(args.hub_model_id)
    say(f"Uploading {folder} to {name} …")
    where = hub.push_folder(
        folder,
        name,
        use_hf=args.use_hf,
        private=args.hub_private_repo,
        message=args.commit_message,
        patterns=patterns,
    )
    say(f"It is at {where}")
    if not args.hub_private_repo:
        warn(f"{name} is public unless it was made private before.")
