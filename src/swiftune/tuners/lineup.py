"""Several adapters on one model, each for its own share of the tokens of one pass.

Plain LoRA (arXiv:2106.09685, section 4.1) is added for each adapter's tokens: y = x Wᵀ + b, and y += s (x Aᵀ) Bᵀ for
those of its tokens. Everything else that PEFT offers (DoRA, trained embeddings, ...) takes a pass of its own with
PEFT's own path, the adapter being switched to.

Shapes: T tokens, D inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from swiftune.errors import AdapterError
from swiftune.tuners.adapter import add_adapter, read_config
from swiftune.tuners.adapter_files import changes_base

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

NONE = ""
"""The name of no adapter."""


class Lineup:
    """The adapters of a model.

    Args:
        model: PEFT's, with one adapter active, which is then the default; or a plain one.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        is_peft = hasattr(model, "peft_config")
        self._peft: Any = model if is_peft else None
        self.base: Any = model.get_base_model() if is_peft else model
        self._inside: dict[str, str] = {name: name for name in model.peft_config} if is_peft else {}
        """PEFT's name of each adapter: a name of a module, which may not hold a dot."""
        self.default: str = model.active_adapters[0] if is_peft else NONE
        configs = model.peft_config.values() if is_peft else ()
        self.has_base = not any(changes_base(config.to_dict()) for config in configs)
        """Whether the base is what it was before it got its adapters."""
        self._active = self.default
        self._loaded = 0
        self._layers = _plain_layers(self.base)
        self._mixable = {name: self._is_mixable(inside) for name, inside in self._inside.items()} | {NONE: True}
        self._segments: list[tuple[str, slice]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """All adapters."""
        return tuple(self._inside)

    def load(self, name: str, path: Path) -> None:
        """Loads an adapter beside the others.

        Raises:
            AdapterError: it is none, does not fit the model, or changes the base; or the name is taken.
        """
        if name in self._inside or name == NONE:
            raise AdapterError(f"There is an adapter {name} already." if name else "An adapter needs a name.")
        if not self.has_base:
            raise AdapterError("The adapter that the engine was started with changes the base; none can be beside it.")
        if what := changes_base(read_config(path)):
            raise AdapterError(
                f"The adapter in {path} is {what}: it would change the base for all.",
                f"Serve it by itself, or merge it: swift export --adapters {path} --merge_lora true",
            )
        self._loaded += 1
        inside = f"loaded_{self._loaded}"
        wrapped = add_adapter(self._peft or self.base, path, inside)
        if self._peft is None:
            self._peft, self._active = wrapped, name
        self._inside[name] = inside
        self._layers = _plain_layers(self.base)
        self._mixable[name] = self._is_mixable(inside)

    def unload(self, name: str) -> None:
        """Forgets an adapter.

        Raises:
            AdapterError: there is none of that name, or it is what the others fall back on.
        """
        if name not in self._inside:
            raise AdapterError(f"There is no adapter {name}.", f"There are: {', '.join(self._inside) or 'none'}.")
        if name == self.default:
            raise AdapterError(f"The adapter {name} is the one that the engine was started with; it stays.")
        if self._active == name:
            self._switch(next((other for other in self._inside if other != name), NONE))
        inside = self._inside.pop(name)
        del self._mixable[name]
        self._peft.delete_adapter(inside)
        self._layers = _plain_layers(self.base)

    def groups(self, adapters: Sequence[str]) -> list[list[int]]:
        """The positions in ``adapters`` that can go through the model together; those of one adapter side by side."""
        by_name: dict[str, list[int]] = {}
        for position, name in enumerate(adapters):
            by_name.setdefault(name, []).append(position)
        mixed = [position for name, positions in by_name.items() if self._mixable[name] for position in positions]
        alone = [positions for name, positions in by_name.items() if not self._mixable[name]]
        return [group for group in (mixed, *alone) if group]

    @contextmanager
    def using(self, tokens: Sequence[tuple[str, int]]) -> Iterator[None]:
        """A context in which the next so many tokens of a pass, each time, go through the adapter named.

        Args:
            tokens: of one of the ``groups``.
        """
        names = {name for name, _ in tokens}
        if self._peft is None:
            yield
        elif all(self._mixable[name] for name in names):
            with self._switched(self._active if self._mixable[self._active] else NONE):
                self._segments = _segments(tokens)
                before = [layer.module.__dict__.get("forward") for layer in self._layers]
                try:
                    for layer in self._layers:
                        layer.module.forward = layer.forward_for(self._segments, self._inside)
                    yield
                finally:
                    for layer, own in zip(self._layers, before, strict=True):
                        del layer.module.forward
                        if own is not None:
                            layer.module.forward = own
        else:
            with self._switched(*names):
                yield

    @contextmanager
    def _switched(self, name: str) -> Iterator[None]:
        """A context in which PEFT uses another adapter."""
        active = self._active
        self._switch(name)
        try:
            yield
        finally:
            self._switch(active)

    def _switch(self, name: str) -> None:
        """Makes PEFT use one adapter in all layers."""
        if name == self._active:
            return
        tuner = self._peft.base_model
        if name == NONE:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            self._peft.set_adapter(self._inside[name], inference_mode=True)
        self._active = name

    def _is_mixable(self, inside: str) -> bool:
        """Whether all of an adapter is in plain LoRA layers."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import AuxiliaryTrainingWrapper

        plain = {id(layer.module) for layer in self._layers if layer.is_plain(inside)}
        for module in self.base.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                return False
            if isinstance(module, BaseTunerLayer) and id(module) not in plain and _holds(module, inside):
                return False
        return True


class _Layer:
    """A layer that may have plain LoRA."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._cast: dict[tuple[str, torch.dtype], tuple[torch.Tensor, torch.Tensor, float]] = {}

    def is_plain(self, inside: str) -> bool:
        module = self.module
        return inside in module.lora_A and inside not in module.lora_variant and not module.lora_bias[inside]

    def forward_for(
        self, segments: list[tuple[str, slice]], inside: dict[str, str]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """The layer's forward with each segment's adapter, of those that the layer has."""
        module = self.module
        mine = [(inside[name], part) for name, part in segments if name and inside[name] in module.lora_A]

        def forward(x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = module.base_layer(x)
            y_TO, x_TD = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            for name, part in mine:
                a_RD, b_RO, scaling = self._weights(name, y.dtype)
                y_TO[part].addmm_(linear(x_TD[part].to(y.dtype), a_RD), b_RO, alpha=scaling)
            return y

        return forward

    def _weights(self, name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, float]:
        """A, Bᵀ and s, in the dtype of the layer's output."""
        if (name, dtype) not in self._cast:
            module = self.module
            a_RD, b_OR = (factor[name].weight.detach().to(dtype) for factor in (module.lora_A, module.lora_B))
            self._cast[name, dtype] = a_RD, b_OR.t(), module.scaling[name]
        return self._cast[name, dtype]


def _plain_layers(base: Any) -> list[_Layer]:
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:
        return []
    return [
        _Layer(module)
        for module in base.modules()
        if isinstance(module, LoraLayer)
        and type(module).__name__.startswith("Linear")
        and not getattr(module, "fan_in_fan_out", False)
        and not module.merged
    ]


def _holds(module: Any, inside: str) -> bool:
    return any(inside in getattr(module, attribute, ()) for attribute in module.adapter_layer_names)


def _segments(tokens: Sequence[tuple[str, int]]) -> list[tuple[str, slice]]:
    """Stretches of tokens of one adapter."""
    found: list[tuple[str, slice]] = []
    at = 0
    for name, count in tokens:
        if found and found[-1][0] == name:
            found[-1] = name, slice(found[-1][1].start, at + count)
        else:
            found.append((name, slice(at, at + count)))
        at += count
    return found
