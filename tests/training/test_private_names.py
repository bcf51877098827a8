"""Private names of other packages: in one file, and a clear error where one is missing."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import COMMANDS

import pipeline
from pipeline.errors import UsageError
from pipeline.files import torch_files
from pipeline.lift.module import LiftModule
from pipeline.training import private_names
from pipeline.training.checkpoints import load_module

ROOT = Path(__file__).parents[2]
ADAPTER = "pipeline/training/private_names.py"
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
DOCUMENTED = {"os._exit"}


def private_uses(text: str) -> set[str]:
    """Private names that a source uses and does not define itself."""
    tree = ast.parse(text)
    own, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if ast.unparse(node.value) == "self" else set()
        if isinstance(node, ast.Attribute) and ast.unparse(node) not in DOCUMENTED:
            used.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            used |= {part for alias in node.names for part in alias.name.split(".")}
            used |= set((getattr(node, "module", None) or "").split("."))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            used.add(str(getattr(node.args[1], "value", "")))
    return {name for name in used - own if PRIVATE.fullmatch(name)}


@pytest.mark.parametrize(
    "path",
    sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "pipeline").rglob("*.py")
        if str(path.relative_to(ROOT)) != ADAPTER
    ),
)
def test_a_file_uses_no_private_name_but_its_own(path):
    text = (ROOT / path).read_text()
    assert not private_uses(text)
    assert not re.search(r"[\"']_(instantiator|linear_pointwise)[\"']", text)


@pytest.mark.parametrize(
    "line",
    [
        "trainer._signal_connector.register()",
        "from torch.utils.data.dataloader import _BaseDataLoaderIter",
        "import torch._C",
        "torch._foreach_norm(x)",
        "super()._get_iterator()",
        "hasattr(torch.ops.mkldnn, '_linear_pointwise')",
        "class A(LightningCLI):\n    def f(self):\n        return self._get(1)",
    ],
)
def test_a_planted_private_name_is_found(line):
    assert private_uses(line)


def foreign_overrides(cls: type) -> set[str]:
    """Private methods of a class that a base from another package has, too."""
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] != "pipeline"]
    return {
        name
        for name, value in vars(cls).items()
        if PRIVATE.fullmatch(name)
        and (inspect.isroutine(value) or isinstance(value, property))
        and any(name in vars(base) for base in bases)
    }


def all_classes():
    for info in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if info.name.endswith("__main__"):
            continue
        for _, cls in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if cls.__module__ == info.name:
                yield cls


def test_no_class_replaces_a_private_method_of_another_package():
    found = {
        f"{cls.__module__}.{cls.__name__}": names
        for cls in all_classes()
        if (names := foreign_overrides(cls)) and cls.__module__ != private_names.__name__
    }
    assert not found


def test_a_planted_override_is_found():
    class Planted(torch.nn.Module):
        def _apply(self, fn):
            return self

    assert foreign_overrides(Planted) == {"_apply"}


IMPORT = """
import sys, torch.utils.data.dataloader
import {module}
del {owner}.{name}
from pipeline.__main__ import main
sys.exit(main(["lift", "fit", "--help_all"]))
"""


@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [
        (
            "torch.utils.data.dataloader",
            "torch.utils.data.dataloader",
            "_MultiProcessingDataLoaderIter",
        ),
        (
            "torch.utils.data.dataloader",
            "torch.utils.data.dataloader._MultiProcessingDataLoaderIter",
            "_try_get_data",
        ),
        ("torch", "torch._C", "_len_torch_dispatch_stack"),
    ],
)
def test_a_missing_name_of_torch_is_one_line_and_exit_code_2(module, owner, name):
    code = IMPORT.format(module=module, owner=owner, name=name)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        rf"heatlift: error: torch \S+ has no \w+\.{name}, which Heatlift needs; run: pip .*\n",
        done.stderr,
    )


@pytest.mark.parametrize("name", ["_shutdown_workers", "_try_get_data"])
def test_each_checked_name_of_the_workers_is_one_that_torch_has(name):
    assert hasattr(private_names.WorkersIterator, name)


def test_a_trainer_without_its_signal_handlers_raises_an_error():
    place = "SimpleNamespace._signal_connector"
    with pytest.raises(UsageError, match=rf"lightning \S+ has no {place}, .*pip install"):
        private_names.disable_signal_handlers(SimpleNamespace())
    trainer = SimpleNamespace(_signal_connector=SimpleNamespace())
    with pytest.raises(UsageError, match=r"no SimpleNamespace\.register_signal"):
        private_names.disable_signal_handlers(trainer)


def test_a_parser_without_its_options_raises_an_error():
    with pytest.raises(UsageError, match=r"jsonargparse \S+ has no SimpleNamespace._actions"):
        private_names.parser_actions(SimpleNamespace())


def test_workers_without_their_list_raise_an_error():
    with pytest.raises(UsageError, match=r"torch \S+ has no SimpleNamespace._workers"):
        private_names.WorkerIterator.workers.fget(SimpleNamespace())


def test_what_pip_is_told_are_the_bounds_of_the_package(monkeypatch):
    monkeypatch.setattr(private_names, "requires", lambda _: ["torch<3,>=2", "torchmetrics>1"])
    assert private_names.tested_versions("torch") == "'torch<3,>=2'"
    assert private_names.tested_versions("lightning").startswith("an earlier lightning")


def test_only_our_reader_opens_a_checkpoint_even_if_lightning_renames_its_methods(
    heatlift, uninterrupted
):
    uninterrupted("lift")
    best = uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"
    arguments = ("lift", "test", *COMMANDS["lift"][2:], "--ckpt_path", best)
    child = heatlift(*arguments, faults=[("say_who_reads",)])
    assert child.wait() == 0, child.stderr
    assert not re.findall("READ BY (.*)", child.stdout)  # torch's own reader is never called


def test_a_module_is_loaded_from_a_checkpoint_by_our_reader_alone(uninterrupted, monkeypatch):
    uninterrupted("lift")
    best = uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"
    readers, load = [], torch.load

    def reported(*arguments, **options):
        readers.append(Path(sys._getframe(1).f_code.co_filename).name)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", reported)
    module = load_module(best, (LiftModule,))
    assert not readers
    weights = torch_files.read_checkpoint(best)["state_dict"]
    assert all(torch.equal(module.state_dict()[name], weights[name]) for name in weights)


@pytest.mark.parametrize("fault", ["strategy_reads_checkpoints", "lightning_drops_the_plugin"])
def test_weights_that_lightning_read_unchecked_raise_an_error(fault, heatlift, uninterrupted):
    uninterrupted("lift")
    best = uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"
    child = heatlift(
        *COMMANDS["lift"][:1],
        "test",
        "-c",
        "lift.yaml",
        "--data.detections",
        "exact",
        "--ckpt_path",
        best,
        faults=[(fault,)],
    )
    assert child.wait() == 2, child.stderr
    assert "reads checkpoints without Heatlift's checks of them; run: pip install" in child.stderr
