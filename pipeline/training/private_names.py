"""Private names of other packages: used in this file alone, and each checked before its use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, dataloader

from pipeline.errors import UsageError


def require(owner: Any, name: str, package: str) -> Any:
    """A private name of another package, which any new version of the package may rename.

    Args:
        owner: Module, class or object that has the name.
        name: The private name.
        package: The package, as pip knows it.

    Raises:
        UsageError: If the installed version does not have the name.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        place = getattr(owner, "__name__", type(owner).__name__).rpartition(".")[2]
        raise UsageError(
            f"{package} {version(package)} has no {place}.{name}, which Heatlift needs; "
            f"run: pip install {tested_versions(package)}"
        ) from None


def tested_versions(package: str) -> str:
    """Versions of a package that Heatlift was tested with, as an argument of `pip install`."""
    try:
        wanted = requires("heatlift") or []
    except PackageNotFoundError:
        wanted = []
    found = [text for text in wanted if text.split(";")[0].strip(" <>=!~.,0123456789") == package]
    return f"'{found[0]}'" if found else f"an earlier {package}, one that pyproject.toml allows"


# Lightning

INSTANTIATOR = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
"""Entry of the settings in a checkpoint by which Lightning's `load_from_checkpoint` reads them.

Heatlift does not read it; it shows that the settings are those of a run.
"""


def without_instantiator(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint that are arguments of its module."""
    return {name: value for name, value in settings.items() if name not in INSTANTIATOR}


def disable_signal_handlers(trainer: Any) -> None:
    """Keep Lightning from handling SIGTERM and SLURM's signals.

    Raises:
        UsageError: If this version of Lightning handles signals in another way.
    """
    connector = require(trainer, "_signal_connector", "lightning")
    require(connector, "register_signal_handlers", "lightning")
    connector.register_signal_handlers = lambda: None


# jsonargparse


def parser_actions(parser: Any) -> list[Any]:
    """The options of a parser, with their names and help texts.

    Raises:
        UsageError: If this version of jsonargparse keeps them in another way.
    """
    return list(require(parser, "_actions", "jsonargparse"))


# torch

WorkersIterator: Any = require(dataloader, "_MultiProcessingDataLoaderIter", "torch")
require(WorkersIterator, "_try_get_data", "torch")
require(WorkersIterator, "_shutdown_workers", "torch")
require(DataLoader, "_get_iterator", "torch")
require(nn.Module, "_apply", "torch")

dispatch_modes: Callable[[], int] = require(torch._C, "_len_torch_dispatch_stack", "torch")
"""Number of dispatch modes that are active, such as FlopCounterMode."""

onednn_product: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""oneDNN's product of dense matrices; None where this build of torch is without it."""


class WorkerIterator(WorkersIterator):
    """Iterator of a DataLoader with workers; a subclass may extend its two steps."""

    @property
    def workers(self) -> list[Any]:
        """The worker processes."""
        return list(require(self, "_workers", "torch"))

    def try_get_data(self, timeout: float) -> tuple[bool, Any]:
        """Wait for data of a worker; whether there was any, and the data.

        Args:
            timeout: Seconds to wait.
        """
        return super()._try_get_data(timeout)

    def shut_down_workers(self) -> None:
        """End the workers."""
        super()._shutdown_workers()

    def _try_get_data(self, timeout: float = 5.0) -> tuple[bool, Any]:
        return self.try_get_data(timeout)

    def _shutdown_workers(self) -> None:
        self.shut_down_workers()


class LoaderWithIterator(DataLoader[dict[str, Any]]):
    """A DataLoader whose subclass may choose the iterator."""

    def make_iterator(self) -> Any:
        """The iterator of a pass."""
        return super()._get_iterator()

    def _get_iterator(self) -> Any:
        return self.make_iterator()


class UncastStates(nn.Module):
    """Mixin of a torchmetrics `Metric`: its states are moved between devices and never cast."""

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        def move(state: Tensor) -> Tensor:
            return state.to(fn(state).device)

        return super()._apply(move, exclude_state)
