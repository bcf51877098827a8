"""Mistakes in a user's own lifter: their file and line are shown, and nothing is called a bug."""

from __future__ import annotations

import sys

import pytest
import torch
from runs import TINY

from pipeline.__main__ import main
from pipeline.cli import explain
from pipeline.errors import UsageError
from pipeline.lift.lifter import Lifter, check_lifter

pytestmark = pytest.mark.filterwarnings("default")  # `cli.launch` sets the filters

GOOD = """
import torch
from pipeline.lift.lifter import Lifter

class Mine(Lifter):
    def __init__(self, frames: int = 5, width: int = 8):
        super().__init__()
        self.frames, self.receptive_field, self.output = frames, 1, "every"
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(34, width), torch.nn.ReLU(), torch.nn.Linear(width, 51)
        )

    def forward(self, joints2d, visible=None):
        B, T, J, C = joints2d.shape
        return self.layers(joints2d.flatten(2)).view(B, T, J, 3)
"""

MISTAKES = {
    "wrong number of inputs": (
        ("Linear(34,", "Linear(17,"),
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        "return self.layers(joints2d.flatten(2))",
    ),
    "two coordinates": (("51", "34"), "RuntimeError: shape '[2, 5, 17, 3]' is invalid", "view"),
    "one frame of every": (
        ("view(B, T, J, 3)", "view(B, T, J, 3)[:, :1]"),
        "Mine: clips (2, 5, 17, 2) give (2, 1, 17, 3), and its output 'every' needs (2, 5, 17, 3)",
        None,
    ),
    "one clip alone": (
        ("flatten(2)", "reshape(1, T, -1)"),
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        "reshape(1, T, -1)",
    ),
    "not finite": (
        ("view(B, T, J, 3)", "view(B, T, J, 3) * float('nan')"),
        "Mine: gives NaN or infinite numbers; correct forward",
        None,
    ),
    "unknown output": (('"every"', '"center"'), "output is 'center'; give one of every", None),
    "no output": ((', self.output = frames, 1, "every"', " = frames, 1"), "`output`", None),
    "no frames": (
        ("self.frames, self.receptive_field", "self.window, self.receptive_field"),
        "Mine: has no attribute `frames`; set it in __init__",
        None,
    ),
    "name of a variable": (("B, T, J, C", "B, T, J, D, C"), "ValueError: not enough", "D, C"),
    "undefined name": (("torch.nn.ReLU()", "nn.ReLU()"), "NameError: name 'nn'", "nn.ReLU()"),
    "syntax": (("return self", "retrun self"), "SyntaxError", "retrun"),
    "missing import": (("import torch\n", "import trch\n"), "No module named 'trch'", "trch"),
    "window too long": (
        ('frames, 1, "every"', 'frames, 9, "valid"'),
        "receptive_field is 9; give from 1 to 5 with output 'valid' and clips of 5 frames",
        None,
    ),
    "window too short": (
        ('frames, 1, "every"', 'frames, 3, "centre"'),
        "receptive_field is 3; give 5 with output 'centre' and clips of 5 frames",
        None,
    ),
}


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys, request):
    """Train the lifter of a file for one step; return the exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(explain, "own_files", [])
    name = "mine_" + "".join(filter(str.isalnum, request.node.name))
    before, after = TINY["lift"].split("  net:")
    after = after[after.index("  optimizer:") :]
    (tmp_path / "lift.yaml").write_text(f"{before}  net: {{class_path: {name}.Mine}}\n{after}")

    def run(code):
        (tmp_path / f"{name}.py").write_text(code)
        arguments = ("-c", "lift.yaml", "--import", f"{name}.py", "--trainer.max_steps", "1")
        code = main(["lift", "fit", *arguments])
        return code, capsys.readouterr().err

    return run


def test_a_good_lifter_trains(fit):
    code, err = fit(GOOD)
    assert code == 0, err


def test_a_lifter_that_was_changed_after_its_training_is_told_so(fit, tmp_path, capsys):
    assert fit(GOOD)[0] == 0
    (file,) = tmp_path.glob("mine_*.py")
    file.write_text(
        GOOD.replace("(34, width)", "(34, width + 1)").replace("(width, 51", "(width + 1, 51")
    )
    (best, *_) = sorted(tmp_path.glob("runs/lift/*/checkpoints/*.ckpt"))
    del sys.modules[file.stem]
    options = ("-c", "lift.yaml", "--import", file.name, "--ckpt_path", str(best))
    assert main(["lift", "test", *options]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the checkpoint: its weights do not fit the network: " in line
    assert "[8, 34] there, [9, 34] here" in line


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_an_own_lifter_is_shown_with_its_line(name, fit):
    change, message, line = MISTAKES[name]
    assert change[0] in GOOD
    code, err = fit(GOOD.replace(*change))
    *trace, last = err.strip().splitlines()
    assert code == 2, err
    assert message in last
    assert last.startswith("heatlift: error: ")
    assert "a bug" not in err
    if line is None:
        assert trace == []
    else:
        assert "mine_" in trace[0]
        assert any(line in part for part in trace)
        assert not any("site-packages" in part for part in trace)


def test_the_check_of_a_lifter_changes_nothing():
    class Noisy(Lifter):
        frames, receptive_field, output = 4, 3, "valid"

        def forward(self, joints2d, visible=None):
            torch.rand(3)
            assert not self.training
            return torch.zeros(len(joints2d), 2, 17, 3)

    state = torch.random.get_rng_state()
    net = Noisy()
    check_lifter(net)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert net.training
    Noisy.output, Noisy.receptive_field = "centre", 4
    with pytest.raises(UsageError, match=r"needs \(2, 1, 17, 3\)"):
        check_lifter(net)
