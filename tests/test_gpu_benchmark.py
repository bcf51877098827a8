"""benchmarks/gpu.py: its counts and tables, and all of its parts with tiny networks on the CPU."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from pipeline.__main__ import main
from pipeline.lift import MixSTE

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.py"


@pytest.fixture(scope="module")
def gpu():
    """The script as a module; it imports others of its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield importlib.import_module("gpu")


# ---- FLOPs and peaks ---------------------------------------------------------------------------


def test_a_linear_layer_has_two_flops_per_weight_and_row_in_each_product(gpu):
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    forward = 2 * 4 * 3 * 5, 2 * 4 * 5 * 7
    backward = forward[0] + 2 * forward[1]  # the input of the network needs no gradient
    assert gpu.count_training_flops(net, torch.zeros(4, 3)) == sum(forward) + backward


def test_flops_of_mixste_are_those_of_the_formula(gpu):
    B, T, J, C, depth = 3, 9, 17, 16, 2
    N = B * T * J
    linear = 2 * N * C * (3 * C + C + 2 * C + 2 * C)  # q k v, projection, two layers of the MLP
    attention = {L: 2 * (2 * N * L * C) for L in (J, T)}  # q k^T and the weighted sum
    forward = depth * (2 * linear + sum(attention.values())) + 2 * N * C * (2 + 3)
    expected = 3 * forward - 2 * N * 2 * C  # the input of the network needs no gradient
    net = MixSTE(frames=T, dim=C, depth=depth, heads=2)
    assert gpu.count_training_flops(net, torch.zeros(B, T, J, 2)) == expected


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", None),
        ("NVIDIA A10", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_peak_of_a_card_is_that_of_its_data_sheet(gpu, name, peak):
    assert gpu.data_sheet_peak(name) == peak


# ---- rows --------------------------------------------------------------------------------------


def test_a_row_that_fails_has_the_reason_and_the_next_one_follows(gpu, capsys):
    table = gpu.Table("network", "batch", "steps/s", "memory")
    errors = [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        gpu.NoTimeLeft("no time left (--minutes)"),
        ValueError("outputs\n differ | by 1"),
    ]
    for number, error in enumerate(errors):
        with table.attempt("MixSTE", str(number)):
            raise error
    with table.attempt("MixSTE", "4"):
        table.add("MixSTE", "4", "2.5", "1 GiB")
    assert capsys.readouterr().out.strip().splitlines() == [
        "| network | batch | steps/s | memory |",
        "|---|---|---|---|",
        "| MixSTE | 0 | out of memory |  |",
        "| MixSTE | 1 | out of memory |  |",
        "| MixSTE | 2 | no time left (--minutes) |  |",
        "| MixSTE | 3 | ValueError: outputs differ / by 1 |  |",
        "| MixSTE | 4 | 2.5 | 1 GiB |",
    ]
    assert table.failures == 1


def test_outputs_that_differ_are_an_error(gpu):
    published, ours = gpu.FORMS[0], gpu.Form(published=False, precision="32-true")
    results = {published: (1.0, torch.tensor([2.0, -4.0])), ours: (1.0, torch.tensor([2.1, -4.0]))}
    assert gpu.relative_difference(results[ours][1], results[published][1]) == pytest.approx(0.025)
    gpu.check_outputs(ours, results, 0.03)
    with pytest.raises(ValueError, match=r"differ by 2\.5e-02"):
        gpu.check_outputs(ours, results, 0.02)


def test_a_training_is_described_by_its_metrics(gpu, tmp_path):
    rows = ["0,train/samples_per_s,30", "9,train/samples_per_s,60", "19,train/samples_per_s,90"]
    rows += ["9,val/mpjpe_mm,80.25", "19,val/mpjpe_mm,71.5", "29,val/mpjpe_mm,72.0"]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,name,value", *rows, ""]))
    for step in (20, 30):
        save_weights(tmp_path, step, [0.0])
    training = gpu.Training("mixste", "lift", "lift/mixste_mocap", [], "people", batch=4)
    cells = gpu.training_cells(training, tmp_path)
    assert cells == ("30", "15", "val/mpjpe_mm 71.5 (best of 3)")


@pytest.mark.parametrize("number", range(4))
def test_the_trainings_on_a_gpu_are_commands_that_heatlift_accepts(gpu, capsys, tmp_path, number):
    training = gpu.trainings(tmp_path, tmp_path, tiny=False)[number]
    arguments = gpu.fit_arguments(training, tmp_path, "none", 300.0)
    assert main([*arguments, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["max_time"] == "00:00:03:20"
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["data"]["batch_size"] == training.batch
    net = config["model"]["net"]["init_args"]
    if training.network == "mixste":
        sizes = {"frames": 243, "dim": 512, "depth": 8, "heads": 8}
        assert sizes.items() <= net["net"]["init_args"].items()
    elif training.network == "hrnet":
        assert net["width"] == 32
        sources = config["data"]["source"]["init_args"]["sources"]
        assert [each["class_path"].rpartition(".")[2] for each in sources] == [
            *("Synthetic", "Coco", "Mpii")
        ]
    else:
        assert net["layers"] == 50
        assert len(config["data"]["photographs"]["init_args"]["sources"]) == 2


def test_weights_are_compared_with_how_far_they_have_moved(gpu, tmp_path):
    for name, step, weights in (("one", 8, [1.0, 1.0]), ("one", 12, [4.0, 5.0])):
        save_weights(tmp_path / name, step, weights)
    save_weights(tmp_path / "ddp", 12, [4.0, 5.5])
    difference = gpu.weights_difference(tmp_path / "one", tmp_path / "ddp", (8, 12))
    assert difference == pytest.approx(0.5 / 5)


def save_weights(run, step, weights):
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    state = {"net.a": torch.tensor(weights[:1]), "net.b": torch.tensor(weights[1:])}
    torch.save({"state_dict": state}, run / f"checkpoints/step-{step:09d}.ckpt")


def test_nccl_is_named_if_it_has_printed_its_version(gpu):
    printed = "a line\nNCCL version 2.27.3+cuda13.0\n"
    assert gpu.nccl_version(printed) == "nccl 2.27.3+cuda13.0"
    assert gpu.nccl_version("a line\n") == "NCCL not seen"


# ---- the command -------------------------------------------------------------------------------


def test_without_a_gpu_it_prints_one_line_and_make_bench_goes_on(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "finds no GPU here, so nothing is measured" in line


def test_a_folder_that_is_not_there_is_named(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--root", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert f"--root {tmp_path / 'none'}: is no folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_parts_run_with_tiny_networks(tmp_path):
    """Times are not checked: the machine may be busy."""
    command = [sys.executable, str(SCRIPT), "--tiny", "--minutes", "600"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    date, *_ = done.stdout.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d, CPU, torch [\w.+]+$", date)
    assert "gpu.py --tiny --minutes 600`" in done.stdout
    steps, trained, ddp = read_tables(done.stdout)
    forms = [
        f"{form}, {precision}"
        for form in ("published", "Heatlift")
        for precision in ("32-true", "bf16-mixed")
    ]
    names = ["MixSTE, 9 frames", "HRNet-W8, 64x64", "SAN-50, 64x64, 4 bins"]
    assert [row[:3] for row in steps] == [[name, "2", form] for name in names for form in forms]
    for row in steps:
        rate, ratio, speed, _, memory, difference, feeding = row[3:]
        assert min(map(float, (rate, ratio, speed, feeding))) > 0
        assert memory == "-"
        assert float(difference) < (1e-5 if "32-true" in row[2] else 0.1)
    assert [row[0] for row in trained] == [
        *("mixste, `pretrain`", "mixste, `lift`", "hrnet, `heatmap`", "san, `integral`")
    ]
    for row in trained:
        assert row[2] == "3"
        assert float(row[3]) > 0
        assert re.match(r"val/(mpjpe_mm|pck_0.1) [\d.e-]+ \(best of \d\)$", row[4])
    ((title, backend, count, difference, equal),) = ddp
    assert (title, count, equal) == ("2 processes against one without DDP", "12", "yes")
    assert backend == "gloo"
    assert float(difference) < 1e-3


def read_tables(page):
    """Cells of the rows of each Markdown table, without its heading."""
    blocks = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
        for block in blocks
    ]
