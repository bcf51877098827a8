"""Half precision of the network alone: targets, cameras, losses and metrics stay in float32."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import nn


class NetworkHalfPrecision(HalfPrecision):
    """Precision bf16-true or 16-true, for the weights of a stage's `net` and its inputs.

    Lightning's plugin also rounds the batch, to 3 decimal digits in bf16: the true joints that
    errors are measured against, and the focal lengths.

    Args:
        precision: bf16-true or 16-true.
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert the weights and buffers of `net`; all else in the module stays float32.

        Buffers that a part of `net` names in its attribute `float32_buffers` stay float32, too.
        """
        network = getattr(module, "net", module)
        kept = [
            (part, name, getattr(part, name))
            for part in network.modules()
            for name in getattr(part, "float32_buffers", ())
        ]
        network.to(torch.bfloat16 if self.precision == "bf16-true" else torch.float16)
        for part, name, buffer in kept:
            setattr(part, name, buffer)
        return module

    def convert_input(self, data: Any) -> Any:
        """Keep a batch as it is; the stage converts the input of its network."""
        return data

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """Keep float32 as the type of new tensors."""
        yield


def precision_options(precision: Any, plugins: Sequence[Any]) -> dict[str, Any]:
    """Options of the Trainer with Lightning's half precision replaced by that of the network alone.

    Args:
        precision: Value of `--trainer.precision`.
        plugins: Plugins of the user.

    Returns:
        The options `precision` and `plugins`; a precision that is a plugin is None.
    """
    if precision in ("bf16-true", "16-true"):
        precision, plugins = None, [*plugins, HalfPrecision(precision)]
    replaced = [
        NetworkHalfPrecision(plugin.precision) if type(plugin) is HalfPrecision else plugin
        for plugin in plugins
    ]
    return {"precision": precision, "plugins": replaced}


def network_type(network: nn.Module) -> torch.dtype:
    """Type that the inputs of a network need in any precision context.

    It is the type of its weights, or that of its `float32_buffers`, if a part has some: such a part
    converts its inputs by itself.
    """
    for part in network.modules():
        for name in getattr(part, "float32_buffers", ()):
            return cast(torch.dtype, getattr(part, name).dtype)
    return next((weight.dtype for weight in network.parameters()), torch.float32)
