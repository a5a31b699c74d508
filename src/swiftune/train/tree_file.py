"""Nested states (optimizer, random generators) as one safetensors file: no pickle is written or read.

Tensors go into the file under their path; the structure around them, with all that JSON can say, into its header.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_TENSOR, _STRIDE, _PAIRS, _TUPLE = "__tensor__", "__stride__", "__pairs__", "__tuple__"


def save_tree(tree: Any, file: Path) -> None:
    """Writes dicts, lists, tuples, tensors, numbers, strings, booleans and ``None``."""
    tensors: dict[str, torch.Tensor] = {}
    structure = _take_apart(tree, "", tensors)
    save_file(tensors, file, metadata={"structure": json.dumps(structure)})


def load_tree(file: Path) -> Any:
    """Reads what ``save_tree`` wrote. Raises ``ValueError`` where the file is not whole."""
    try:
        with safe_open(file, framework="pt") as content:
            structure = json.loads(content.metadata()["structure"])
            return _put_together(structure, content.get_tensor)
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"{file.name} is truncated, or was not written here ({error})") from error


def _take_apart(node: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, torch.Tensor):
        tensors[path] = node.detach().cpu().contiguous()
        return {_TENSOR: path} if node.is_contiguous() else {_TENSOR: path, _STRIDE: node.stride()}
    if isinstance(node, dict):  # keys may be integers, which JSON's objects do not keep
        return {_PAIRS: [[key, _take_apart(value, f"{path}/{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        items = [_take_apart(value, f"{path}/{i}", tensors) for i, value in enumerate(node)]
        return {_TUPLE: items} if isinstance(node, tuple) else items
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"{path}: a {type(node).__name__} cannot be saved")


def _put_together(node: Any, tensor: Any) -> Any:
    if isinstance(node, list):
        return [_put_together(item, tensor) for item in node]
    if not isinstance(node, dict):
        return node
    if _STRIDE in node:  # a product of the same numbers in another layout may be rounded otherwise
        value = tensor(node[_TENSOR])
        return torch.empty_strided(value.shape, node[_STRIDE], dtype=value.dtype).copy_(value)
    if _TENSOR in node:
        return tensor(node[_TENSOR])
    if _TUPLE in node:
        return tuple(_put_together(item, tensor) for item in node[_TUPLE])
    return {key: _put_together(value, tensor) for key, value in node[_PAIRS]}
