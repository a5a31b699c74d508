from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftune.train.tree_file import load_tree, save_tree

leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8)
tensors = st.lists(st.floats(-1e3, 1e3, width=32), max_size=4).map(lambda v: torch.tensor(v, dtype=torch.float32))
trees = st.recursive(
    leaves | tensors,
    lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), t, max_size=3),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and type(a) is type(b)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(trees)
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, tree: Any) -> None:
    save_tree({"tree": tree, "pair": (1, "a")}, tmp_path / "t.safetensors")
    loaded = load_tree(tmp_path / "t.safetensors")
    assert same(loaded, {"tree": tree, "pair": (1, "a")})
