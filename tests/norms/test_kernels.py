"""The kernels of a GPU against the operators that they stand for; on the CPU in Triton's interpreter, which is slow."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CASES = ("float32 contiguous", "float32 channels_last", "bfloat16 contiguous", "bfloat16 channels_last")


def compare(dtype: torch.dtype, last: bool, device: str) -> None:
    """Output, all gradients and running averages, for ragged groups of weighted rows."""
    from biomass.norms.kernels import FusedNorm, Running
    from biomass.norms.plate_batch_norm import PlateBatchNorm, PlateRows

    generator = torch.Generator().manual_seed(0)
    n, c, height = 9, 5, 12
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(n, c, height, height, generator=generator) * torch.rand(c, 1, 1, generator=generator) + 3
    x = (x + torch.randn(n, c, 1, 1, generator=generator)).to(device, dtype).to(memory_format=form)
    grad = torch.randn(x.shape, generator=generator).to(device, dtype)
    group = torch.tensor([2, 0, 1, 1, 1, 0, 2, 1, 0])
    used = torch.tensor([1, 1, 0, 2, 1, 0.5, 3, 1, 1]).double()  # one row counts for nothing, some more than others
    weight = used / torch.bincount(group, weights=used)[group]
    spread = (group[:, None] == torch.arange(3)).double()

    reference = PlateBatchNorm(c).to(device)
    with torch.no_grad():
        reference.weight.uniform_()
        reference.bias.uniform_()
    wide = x.detach().double().requires_grad_()
    rows = PlateRows(group, average=(spread * weight[:, None]).T.contiguous().to(device), spread=spread.to(device))
    reference.context.rows = rows
    reference(wide).backward(grad.double())

    fused = PlateBatchNorm(c).to(device)
    fused.load_state_dict(reference.state_dict() | {"running_mean": torch.zeros(c), "running_var": torch.ones(c)})
    own = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    members = group.int().to(device), weight.to(device), 3
    running = Running(fused.running_mean, fused.running_var, 0.1)
    y = FusedNorm.apply(own, fused.weight, fused.bias, *members, fused.eps, running)
    y.backward(grad)

    with torch.no_grad():
        reference.eval()
        expected = reference(wide)
    assert y.is_contiguous(memory_format=form)
    assert y.dtype == dtype
    coarse = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y.double(), expected, rtol=coarse, atol=coarse)
    torch.testing.assert_close(own.grad.double(), wide.grad, rtol=coarse, atol=coarse)
    for a, b in ((fused.weight.grad, reference.weight.grad), (fused.bias.grad, reference.bias.grad)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(fused, name), getattr(reference, name), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed on this platform")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU that is there")
def test_kernels_equal_the_operators_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:-1] == list(CASES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is available")
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_operators_on_a_gpu(case: str) -> None:
    dtype, form = case.split()
    compare(getattr(torch, dtype), form == "channels_last", "cuda")


if __name__ == "__main__":
    for one in CASES:
        kind, order = one.split()
        compare(getattr(torch, kind), order == "channels_last", "cpu")
        print(one)
