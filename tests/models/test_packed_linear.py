from __future__ import annotations

import pytest
import torch

from swiftune.models.packed_linear import PackedLinears
from swiftune.runtime import hardware


@pytest.mark.skipif(not hardware.has_fast_bfloat16(torch.device("cpu")), reason="this processor has no bfloat16")
@pytest.mark.parametrize("rows", [1, 5, 16, 70])
def test_packed_layers_compute_the_same(rows: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(192, 320), torch.nn.Linear(320, 64, bias=False), torch.nn.Linear(64, 8))
    model.to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(1, rows, 192).bfloat16()
    plain = model(x)
    packed = PackedLinears(model)
    with packed.used():
        assert all(("forward" in layer.__dict__) == (n < 2) for n, layer in enumerate(model))  # a small one stays
        torch.testing.assert_close(model(x), plain, rtol=2e-2, atol=2e-2)
    assert torch.equal(model(x), plain)


def test_other_dtypes_stay_as_they_are() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(192, 320))
    with PackedLinears(model).used():
        assert "forward" not in model[0].__dict__
