"""Packages that `heatlift` imports when they are first used, which most commands never do.

Lightning and each optimizer of torch import `torch._dynamo`, the compiler of networks, which takes
long; torchmetrics imports `scipy.signal`
for a name that is no longer in it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from abc import ABC
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any


class LateModule(ModuleType):
    """Stands for a package until a name of it is used that is not among the known ones.

    Then the package itself is imported and takes this module's place in `sys.modules`. Who holds
    this module gets each name from the package from then on, the known names too.

    Args:
        name: Full name of the package.
        known: Names and values that are given without the import.
        when_imported: Called with the package when it is imported.
    """

    def __init__(
        self,
        name: str,
        known: dict[str, Any],
        when_imported: Callable[[ModuleType], None] = lambda package: None,
    ) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package; `InsideLateModules` finds what is in it
        self.known, self.when_imported = known, when_imported

    def import_now(self) -> ModuleType:
        """Import the package itself, if it is not imported."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
            self.when_imported(importlib.import_module(self.__name__))
        return importlib.import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by those who look at all modules, such as inspect
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if sys.modules.get(self.__name__) is self and name in self.known:
            return self.known[name]
        return getattr(self.import_now(), name)


class InsideLateModules(MetaPathFinder, Loader):
    """Finds the modules inside late ones: the package itself is imported first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Import the package of a module, if that is a late one."""
        package = sys.modules.get(fullname.rpartition(".")[0])
        if not isinstance(package, LateModule):
            return None
        package.import_now()
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, which the package may have imported already."""
        module = importlib.import_module(spec.name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give back the module's own spec; it was executed when it was imported."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


class CompiledModule(ABC):  # noqa: B024 (the compiled class is registered)
    """Stands for the class of the networks that `torch.compile` makes: they are its instances."""


def late_dynamo() -> LateModule:
    """`torch._dynamo`: as long as nothing is compiled, nothing needs to be kept from it."""
    at_import: list[Callable[[ModuleType], None]] = []

    def disable(function: Any = None, recursive: bool = True, **options: Any) -> Callable[..., Any]:
        chosen: Callable[..., Any] = function

        def choose(dynamo: ModuleType) -> None:
            nonlocal chosen
            chosen = dynamo.disable(function, recursive, **options)

        if not isinstance(function, FunctionType):
            choose(late.import_now())
            return chosen
        at_import.append(choose)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return chosen(*args, **kwargs)

        return call

    def when_imported(dynamo: ModuleType) -> None:
        CompiledModule.register(dynamo.OptimizedModule)
        for choose in at_import:
            choose(dynamo)

    known = {
        "OptimizedModule": CompiledModule,
        "disable": disable,
        "graph_break": lambda msg="": None,
    }
    late = LateModule("torch._dynamo", known, when_imported)
    return late


def import_late() -> None:
    """Let `torch._dynamo` and `scipy.signal` be imported when they are first used."""
    if not any(isinstance(finder, InsideLateModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, InsideLateModules())
    for module in (late_dynamo(), LateModule("scipy.signal", {"hamming": None})):
        sys.modules.setdefault(module.__name__, module)
