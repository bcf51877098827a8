"""Linear layers whose products run through oneDNN on AMD's CPUs with AVX-512: twice as fast."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.training.private_names import dispatch_modes, onednn_product


def _is_intel() -> bool:
    """Whether the CPU is one of Intel's, for which MKL's products are the fastest."""
    text = platform.processor()  # on Windows; empty on many Linux systems
    with contextlib.suppress(OSError):
        text += Path("/proc/cpuinfo").read_text(errors="replace")[:4096]
    return "GenuineIntel" in text


_HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and not _is_intel()
    and torch.backends.mkldnn.is_available()
    and onednn_product is not None
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
)
"""Whether torch has oneDNN's product of dense matrices, and the CPU has AVX-512 and is not Intel's;
other CPUs use torch's own product."""


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Product x weight^T + bias in float32, (N, K), (M, K), (M,) -> (N, M)."""
    return onednn_product(x, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    """`_onednn_linear` with gradients, which are computed with it, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        return (
            _onednn_linear(gradient, weight.t(), None) if needs_x else None,
            _onednn_linear(gradient.t(), x.t(), None) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Product x weight^T + bias, (..., K), (M, K), (M,) -> (..., M): torch's `linear`, but faster.

    torch gives float32 products to MKL, which does not use AVX-512 on CPUs that are not Intel's:
    103 against 225 GFLOP/s on one core of an AMD EPYC. On an Intel Xeon MKL is 1.1 to 1.9 times as
    fast as oneDNN, so it stays. Anything but plain float32 on a CPU (a GPU, autocast, tracing, a
    dispatch mode) goes to torch's function.
    """
    if (
        not _HAS_ONEDNN
        or x.device.type != "cpu"
        or not (x.dtype == weight.dtype == torch.float32)
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or is_dispatch_observed()
        or not x.numel()
    ):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    needs_gradient = (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    if torch.is_grad_enabled() and needs_gradient:
        out = _OneDNNLinear.apply(rows, weight, bias)
    else:
        out = _onednn_linear(rows, weight, bias)
    return out.view(*x.shape[:-1], -1)


def is_dispatch_observed() -> bool:
    """Whether a dispatch mode is active, such as FlopCounterMode; it knows only torch's own ops."""
    return not torch.compiler.is_compiling() and dispatch_modes() > 0


class Linear(nn.Linear):
    """`torch.nn.Linear` computed by `linear`; the same parameters under the same names."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis, (..., K) -> (..., M)."""
        return linear(x, self.weight, self.bias)


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` in float32 (float64 for such an input) in every precision.

    For the last layer of a lifter: bfloat16 would round coordinates to steps of 2 to 4 mm.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    parts = x.to(wide), weight.to(wide), None if bias is None else bias.to(wide)
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return linear(*parts)
    with torch.autocast(device, enabled=False):
        return linear(*parts)


class FloatLinear(nn.Linear):
    """`torch.nn.Linear` computed by `float_linear`; the same parameters under the same names."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis, (..., K) -> (..., M)."""
        return float_linear(x, self.weight, self.bias)
