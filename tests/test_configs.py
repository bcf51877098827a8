"""Every config in `configs/` has a first comment, is parsed by the command line, and trains."""

from __future__ import annotations

import importlib
import re

import pytest
import torch
import yaml
from costs import cost

from pipeline.__main__ import STAGES, main
from pipeline.cli.configs import configured_classes, shipped_configs
from pipeline.cli.models import count_multiply_adds
from pipeline.skeleton import get_skeleton

WIDE = re.compile(
    r"hrnet_w|simple_baseline|san|resnet|videopose3d|mixste(?!_small|_mocap)|poseformer(?!_group)"
)
"""Names of configs of large networks, trained by `make test-all` only."""

CONFIGS = sorted(shipped_configs().rglob("*.yaml"))
OF_STAGES = [path for path in CONFIGS if path.parent.name in STAGES]
NARROW = [path for path in OF_STAGES if not WIDE.match(path.stem)]
BROAD = [path for path in OF_STAGES if WIDE.match(path.stem)]
OF_DATA = [path for path in CONFIGS if path.parent.name == "data"]
OF_SWEEPS = [path for path in CONFIGS if path.parent.name == "sweeps"]

SMALL = """
data:
  source:
    class_path: pipeline.mocap.Synthetic
    init_args: {train: 2, val: 1, test: 1, actions: [walk], seconds: 1.0, images: 60}
"""
TIMES = r"\b(seconds?|minutes?|hours?|days?|\d+ s)\b"


def name_of(path):
    return path.relative_to(shipped_configs()).with_suffix("").as_posix()


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=name_of)


@pytest.fixture(autouse=True)
def no_run_is_left_in_the_environment(monkeypatch):
    monkeypatch.setenv("HEATLIFT_RUN", "")
    monkeypatch.delenv("HEATLIFT_RUN")


def parsed(arguments, capsys):
    """The parsed config of a command line, with all defaults."""
    code = main([*arguments, "--print_config"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return yaml.safe_load(printed.out)


def resolved(class_path):
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def class_paths(node):
    """All class paths in a config."""
    if isinstance(node, dict):
        yield from [node["class_path"]] if "class_path" in node else []
        for value in node.values():
            yield from class_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from class_paths(value)


def network(path):
    """The network of a config on the meta device (shapes without values)."""
    with torch.device("meta"):
        return built(yaml.safe_load(path.read_text())["model"]["net"]).eval()


def built(named):
    """The object of class_path and init_args, after the objects inside its init_args."""
    if not (isinstance(named, dict) and "class_path" in named):
        return named
    arguments = {key: built(value) for key, value in named.get("init_args", {}).items()}
    return resolved(named["class_path"])(**arguments)


def fast_run(path, tmp_path, batch_size):
    small = tmp_path / "small.yaml"
    small.write_text(SMALL)
    stage = path.parent.name
    arguments = [stage, "fit", "-c", str(path), "-c", str(small)]
    arguments += ["--runs", str(tmp_path / "runs"), "--wandb", "off"]
    arguments += ["--trainer.fast_dev_run", "1"]
    arguments += ["--data.batch_size", str(batch_size), "--data.workers", "0"]
    detections = yaml.safe_load(path.read_text())["data"].get("detections", "exact")
    if detections not in ("exact", "noisy"):
        arguments += ["--data.detections", "exact"]
    return main(arguments)


@each(CONFIGS)
def test_the_first_comment_has_paper_number_and_time(path):
    lines = path.read_text().splitlines()
    comment = " ".join(line[1:] for line in lines[: first_line_after_comments(lines)])
    assert comment.strip(), "a config begins with a comment"
    if path.parent.name in STAGES:
        assert re.search(TIMES, comment, re.IGNORECASE), "how long does it take?"
        assert re.search(
            r"[Pp]aper \d{3}|et al\.|MixSTE|HRNet|Martinez|VideoPose3D|PoseFormer", comment
        ), "which paper?"
        assert re.search(r"\d", comment), "which number is expected?"


def first_line_after_comments(lines):
    """Index of the first line that is not a comment."""
    return next(i for i, line in enumerate(lines) if not line.startswith("#"))


@each(CONFIGS)
def test_classes_exist_and_belong_to_the_package_or_to_torch(path):
    for class_path in class_paths(yaml.safe_load(path.read_text())):
        assert class_path.startswith(("pipeline.", "torch.", "lightning.pytorch."))
        assert isinstance(resolved(class_path), type)


@each(OF_STAGES)
def test_parses_and_its_network_has_the_shapes_of_its_stage(path, capsys):
    config = parsed([path.parent.name, "fit", "-c", str(path)], capsys)
    net = network(path)
    if path.parent.name in ("heatmap", "integral"):
        width, height = config["data"]["input_size"]
        joints = len(get_skeleton(config["data"]["skeleton"]))
        heatmaps = net(torch.empty(2, 3, height, width, device="meta"))
        assert heatmaps.shape[:2] == (2, joints)
        assert heatmaps.shape[-2:] == (height // 4, width // 4)
    else:
        T, J = net.frames, len(net.skeleton)
        lifted = net(torch.empty(2, T, J, 2, device="meta"))
        out = {"every": T, "centre": 1, "valid": T - net.receptive_field + 1}[net.output]
        assert lifted.shape == (2, out, J, 3)


@each(OF_STAGES)
def test_the_multiply_adds_of_its_network_are_those_of_the_formula(path):
    """One sample, in the input size of the config or the default of the stage."""
    config = yaml.safe_load(path.read_text())
    stage, named = path.parent.name, config["model"]["net"]
    default_size = {"heatmap": [192, 256], "integral": [256, 256]}.get(stage)
    image = tuple(config["data"].get("input_size", default_size)) if default_size else None
    net = network(path)
    if image:
        example = torch.empty(1, 3, *reversed(image), device="meta")
    else:
        net.set_progress(1.0)
        example = torch.empty(1, net.frames, len(net.skeleton), 2, device="meta")
    expected = cost(named["class_path"], named.get("init_args", {}), image)
    assert count_multiply_adds(net, example) == expected


@each(NARROW)
def test_a_fast_run_succeeds(path, tmp_path, capsys):
    assert fast_run(path, tmp_path, 4) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(400)
@each(BROAD)
def test_a_fast_run_of_a_large_network_succeeds(path, tmp_path, capsys):
    assert fast_run(path, tmp_path, 2) == 0, capsys.readouterr().err


@each(OF_DATA)
def test_every_stage_accepts_the_data_that_it_can_use(path, capsys):
    named = yaml.safe_load(path.read_text())["data"]["source"]["class_path"]
    source = resolved(named)
    stages = ["heatmap"] if hasattr(source, "samples") else []
    stages += ["pretrain", "lift"] if hasattr(source, "sequences") else []
    assert stages
    for stage in stages:
        small = "hrnet_narrow" if stage == "heatmap" else "mixste_small"
        config = parsed([stage, "fit", "-c", f"{stage}/{small}", "-c", str(path)], capsys)
        assert config["data"]["source"]["class_path"] == named


@each(OF_SWEEPS)
def test_every_parameter_of_a_sweep_is_an_option(path, capsys):
    sweep = yaml.safe_load(path.read_text())
    command = [str(part) for part in sweep["command"] if not str(part).startswith("${")]
    options = []
    for name, content in sweep["parameters"].items():
        value = content.get("value", content.get("values", [content.get("min")])[0])
        options += [f"--{name}", str(value)]
    parsed([*command[command.index("pipeline") + 1 :], *options], capsys)


@pytest.mark.parametrize("path", OF_STAGES, ids=name_of)
def test_frames_of_a_group_are_turned_together(path):
    """A `CentredLifter` is inside of a `StridedLifter`, see there, and never around it."""
    content = yaml.safe_load(path.read_text())
    names = [name.rpartition(".")[2] for name in configured_classes(content)]
    if "CentredLifter" in names and "StridedLifter" in names:
        assert names.index("StridedLifter") < names.index("CentredLifter")


def test_every_folder_of_configs_is_tested():
    assert {path.parent.name for path in CONFIGS} <= {*STAGES, "data", "sweeps", "results"}


@pytest.mark.parametrize(
    ("name", "dropout"),
    [("frames", [0.25]), ("modules", [0.25]), ("dropout", [0.25, 0.2, 0.1, 0.05])],
)
def test_tables_of_paper_003_have_the_dropout_of_their_numbers(name, dropout):
    sweep = yaml.safe_load((shipped_configs() / f"sweeps/paper003_{name}.yaml").read_text())
    content = sweep["parameters"]["model.net.init_args.dropout"]
    assert content.get("values", [content.get("value")]) == dropout


@pytest.mark.parametrize("name", ["poseformer_group", "poseformer_paper003_h36m_cpn"])
def test_presets_of_paper_003_have_the_number_of_their_dropout(name):
    text = (shipped_configs() / f"lift/{name}.yaml").read_text()
    assert "dropout: 0.1}" in text
    assert text.index("43.1 mm") < text.index("43.3 mm")  # 43.3 mm is at 0.25


def test_the_published_network_with_3d_heatmaps_has_a_preset_with_its_cells():
    path = shipped_configs() / "integral/resnet50_published.yaml"
    assert yaml.safe_load(path.read_text())["model"]["published_cells"] is True
    assert sum(p.numel() for p in network(path).parameters()) == 34_291_392


def comment_of(path):
    """The comment at the top of a config, on one line."""
    lines = path.read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines[: first_line_after_comments(lines)])


@each([path for path in OF_STAGES if "precision: bf16" in path.read_text()])
def test_bf16_is_named_beside_the_precision_of_the_paper(path):
    assert re.search(r"Precision: bf16 .* paper .*fp32", comment_of(path))


@each([path for path in OF_STAGES if "group_attention: true" in path.read_text()])
def test_the_two_readings_of_paper_003_are_named(path):
    comment = comment_of(path)
    assert "text has depth-wise" in comment
    assert "groups channels" in comment


@pytest.mark.parametrize(
    ("name", "groups", "millions"),
    [
        ("poseformer_group", "joints", "9.86"),
        ("poseformer_group", "channels", "9.63"),
        ("poseformer_paper003_h36m_cpn", "joints", "9.86"),
        ("poseformer_paper003_3dhp", "joints", "9.82"),
        ("poseformer_paper003_3dhp", "channels", "9.59"),
    ],
)
def test_presets_of_paper_003_have_the_parameters_they_name(name, groups, millions):
    path = shipped_configs() / f"lift/{name}.yaml"
    named = yaml.safe_load(path.read_text())["model"]["net"]
    with torch.device("meta"):
        net = resolved(named["class_path"])(**named["init_args"], groups=groups)
    assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f}" == millions
    assert f"{millions} million" in comment_of(path)


def test_martinez_lifts_the_16_joints_of_its_paper():
    net = network(shipped_configs() / "lift/martinez_h36m_cpn.yaml")
    assert sum(p.numel() for p in net.parameters()) == 4_291_632
    names = [net.skeleton.joints[j] for j in net.seen]
    assert len(names) == 16
    assert "nose" not in names
