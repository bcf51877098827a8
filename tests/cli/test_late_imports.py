"""Packages that are imported late: first steps without them, and all of them when they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FIT = [
    *("lift", "fit", "-c", "lift/demo", "--wandb", "off", "--model.pretrained", "none"),
    *("--data.detections", "exact", "--data.source.init_args.train", "1"),
    *("--data.source.init_args.test", "1", "--data.source.init_args.seconds", "0.5"),
    *("--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"),
    *("--trainer.limit_test_batches", "0"),
]


def run(code: str, *arguments: str) -> str:
    """Run code in a new Python in which packages are imported late; returns what it prints."""
    start = (
        "import pipeline, sys\nfrom pipeline.cli.late_imports import import_late\nimport_late()\n"
    )
    command = [sys.executable, "-W", "error", "-c", start + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_without_compiled_networks_imports_no_compiler(tmp_path: Path) -> None:
    """Two steps with validation: neither torch._dynamo nor scipy.signal nor sympy are imported."""
    code = (
        "from pipeline.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "late = [n for n in sys.modules if n.startswith(('torch._dynamo', 'scipy.signal'))]\n"
        "print('imported:', sorted(late), 'sympy' in sys.modules)\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000"
    )
    command = [sys.executable, "-c", "import gc, sys\n" + code, *FIT, "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: ['scipy.signal', 'torch._dynamo'] False"


@pytest.mark.parametrize(
    "use",
    [
        "import torch._dynamo.config; torch._dynamo.config.verbose",
        "from torch._dynamo.eval_frame import OptimizedModule",
        "from torch._dynamo import debug_utils; debug_utils.__file__",
        "import torch; torch._dynamo.reset()",
        "import torch; torch._dynamo.disable(recursive=False)",
    ],
)
def test_each_way_of_use_imports_the_compiler_itself(use: str) -> None:
    """After each use the package is complete: every module once, with its own spec."""
    run(
        f"{use}\n"
        "import torch, torch._dynamo.config as config\n"
        "assert torch._dynamo is sys.modules['torch._dynamo']\n"
        "assert torch._dynamo.config is config and config.__spec__.origin == config.__file__\n"
        "assert type(torch._dynamo).__name__ == 'module'"
    )


def test_compiled_networks_after_an_optimizer_was_made() -> None:
    """A compiled network is an instance of the class that lightning has; its outputs are equal."""
    run(
        "import torch\n"
        "from lightning.fabric import wrappers\n"
        "network = torch.nn.Linear(3, 2)\n"
        "optimizer = torch.optim.Adam(network.parameters())\n"
        "network(torch.ones(1, 3)).sum().backward()\n"
        "optimizer.step()\n"
        "assert 'torch._dynamo.eval_frame' not in sys.modules\n"
        "assert not isinstance(network, wrappers.OptimizedModule)\n"
        "compiled = torch.compile(network, backend='eager')\n"
        "assert isinstance(compiled, wrappers.OptimizedModule)\n"
        "assert isinstance(compiled, torch._dynamo.OptimizedModule)\n"
        "assert wrappers._unwrap_compiled(compiled)[0] is network\n"
        "inputs = torch.tensor([[1.0, -2.0, 0.5]])\n"
        "assert torch.equal(compiled(inputs), network(inputs))"
    )


def test_functions_kept_from_the_compiler_stay_so_when_it_is_imported_later() -> None:
    """A function that was called before runs as it is in a compiled one: no graph has its call."""
    run(
        "import torch\n"
        "@torch._disable_dynamo\n"
        "def kept(x):\n"
        "    return x + (7 if torch.compiler.is_compiling() else 1)\n"
        "zero = torch.zeros(())\n"
        "assert kept(zero) == 1 and 'torch._dynamo.eval_frame' not in sys.modules\n"
        "assert torch.compile(lambda x: kept(x) * 2, backend='eager')(zero) == 2"
    )


@pytest.mark.parametrize(
    "use",
    [
        "from scipy.signal import butter",
        "from scipy import signal; butter = signal.butter",
        "import scipy; butter = scipy.signal.butter",
        "import scipy.signal; butter = scipy.signal.butter",
        "import scipy.signal.windows, scipy; butter = scipy.signal.butter",
        "import torchmetrics, scipy.signal; butter = scipy.signal.butter",
    ],
)
def test_each_way_of_use_imports_the_filters(use: str) -> None:
    """A filter of order one by hand: half of the sampling rate at a corner of a quarter: 1 / 2."""
    run(
        f"{use}\n"
        "numerator, _ = butter(1, 0.5)\n"
        "assert abs(numerator - 0.5).max() < 1e-12\n"
        "assert type(sys.modules['scipy.signal']).__name__ == 'module'"
    )


def test_a_wrong_name_is_an_import_error() -> None:
    """Names and modules that the package does not have are missed as usual."""
    run(
        "import torch\n"
        "for use in ('import torch._dynamo.no_such', 'from torch._dynamo import no_such'):\n"
        "    try:\n"
        "        exec(use)\n"
        "    except ImportError as error:\n"
        "        assert 'no_such' in str(error)\n"
        "    else:\n"
        "        raise AssertionError(use)\n"
        "assert not hasattr(torch._dynamo, 'no_such')"
    )
