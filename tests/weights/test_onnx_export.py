"""Every network as an ONNX file: the same numbers as torch, at other batches and lengths, too."""

import copy
import functools
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipeline.__main__ import main
from pipeline.errors import DataError, StorageError, UsageError
from pipeline.files.onnx_files import read_onnx
from pipeline.heatmap import HRNet, SimpleBaseline
from pipeline.heatmap.attention import PAPER003
from pipeline.heatmap.image_input import ImageInput
from pipeline.heatmap.module import HeatmapModule
from pipeline.integral import SAN
from pipeline.integral.module import IntegralModule
from pipeline.lift import (
    Cascade,
    CentredLifter,
    CombinedDeepLearner,
    Martinez,
    MixSTE,
    PoseFormer,
    StridedLifter,
    VideoPose3D,
)
from pipeline.lift.module import LiftModule
from pipeline.training.checkpoints import load_module, weights_digest
from pipeline.weights import onnx_export
from pipeline.weights.onnx_export import export_checkpoint, find_facts, make_onnx
from pipeline.weights.onnx_facts import KEY, facts_to_json, read_facts
from pipeline.weights.stored import list_files

SMALL = {"stem": 8, "planes": 8, "blocks": 1, "modules": (1, 1, 1)}
LIFTERS = {
    "mixste": lambda: MixSTE(frames=9, dim=16, depth=2, heads=2),
    "mixste of more frames than plain attention takes": lambda: MixSTE(
        frames=41, dim=16, depth=1, heads=2
    ),
    "mixste with scores": lambda: MixSTE(frames=5, dim=16, depth=1, heads=2, channels=3),
    "poseformer": lambda: PoseFormer(frames=9, dim=8, depth=1, heads=2),
    "poseformer with group attention": lambda: PoseFormer(
        frames=9, dim=16, depth=1, heads=2, group_attention=True, dropout=0.1
    ),
    "videopose3d": lambda: VideoPose3D(widths=(3, 3), channels=16),
    "causal videopose3d": lambda: VideoPose3D(widths=(3, 5), channels=16, causal=True),
    "martinez": lambda: Martinez(width=16),
    "martinez of 16 joints": lambda: Martinez(width=16, unseen=["nose"]),
    "combined": lambda: CombinedDeepLearner(width=16),
    "combined, gated before": lambda: CombinedDeepLearner(
        width=16, gate_preact=True, branches="gated"
    ),
    "cascade": lambda: Cascade(width=16, blocks=1),
    "centred mixste": lambda: CentredLifter(MixSTE(frames=9, dim=16, depth=1, heads=2)),
    "centred videopose3d": lambda: CentredLifter(VideoPose3D(widths=(3, 3), channels=16)),
    "strided mixste": lambda: StridedLifter(MixSTE(frames=3, dim=16, depth=1, heads=2)),
    "strided poseformer": lambda: StridedLifter(PoseFormer(frames=3, dim=8, depth=1, heads=2)),
    "strided videopose3d": lambda: StridedLifter(VideoPose3D(widths=(3, 3), channels=16)),
    "centred martinez": lambda: CentredLifter(Martinez(width=16)),
}
FAST = ("mixste", "videopose3d", "cascade")
"""Each export takes seconds; those of the other networks are slow tests."""

IMAGES = {
    "hrnet": lambda: HeatmapModule(HRNet(8, **SMALL), input_size=(64, 96)),
    "hrnet with attention": lambda: HeatmapModule(
        HRNet(8, attention=PAPER003, **{**SMALL, "modules": (1, 4, 3)}), input_size=(64, 96)
    ),
    "simple baseline": lambda: HeatmapModule(SimpleBaseline(), input_size=(64, 96)),
    "san": lambda: IntegralModule(SAN(depth_bins=4), input_size=(64, 96)),
    "san without attention": lambda: IntegralModule(
        SAN(depth_bins=4, attention=False), input_size=(64, 96)
    ),
    "san with positions": lambda: IntegralModule(
        SAN(depth_bins=4, grid=(3, 2)), input_size=(64, 96)
    ),
}


def with_weights(module):
    """The module with random weights everywhere: also where new networks have zeros."""
    torch.manual_seed(3)
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        weights = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Conv1d, torch.nn.Linear)
        if isinstance(part, weights):
            part.weight.data.normal_(0, part.weight[0].numel() ** -0.5)
    for name, parameter in module.named_parameters():
        if name.endswith(("pos_embed", "mask_token", "bias", "delta", "positions")):
            parameter.data.normal_(0, 0.3)
    for name, buffer in module.named_buffers():
        if name.endswith(("mean2d", "mean3d")):
            buffer.normal_(0, 0.2)
        elif name.endswith(("deviation2d", "deviation3d")):
            buffer.uniform_(0.3, 0.6)
    return module.eval()


def lift_module(name, **options):
    net = LIFTERS[name]()
    net.set_progress(0.5)  # of the cascade's three MLPs the second one
    return with_weights(LiftModule(net, **options))


def session(content):
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@functools.cache
def exported(name):
    """The file of a lifter, and the facts in it as they are read."""
    return export(lift_module(name))


def export(module):
    """The file, and the facts in it as they are read."""
    content = make_onnx(module, find_facts(module), "net.ckpt")
    metadata = session(content).get_modelmeta().custom_metadata_map
    return content, read_facts(metadata, "net.onnx")


def clips(batch, frames, channels):
    generator = torch.Generator().manual_seed(batch * 1000 + frames)
    joints2d = 0.4 * torch.randn(batch, frames, 17, channels, generator=generator)
    return joints2d, torch.rand(batch, frames, 17, generator=generator) > 0.3


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in LIFTERS]
)
def test_a_lifter_gives_the_same_joints_in_onnxruntime(name):
    module = lift_module(name)
    content, facts = exported(name)
    assert facts == find_facts(module)
    run = session(content).run
    T = facts.frames
    lengths = [(1, T), (3, T), (64, T)]
    if facts.any_frames:
        lengths += [(2, T + 7), (1, T + 1)]
    for batch, frames in lengths:
        joints2d, visible = clips(batch, frames, facts.channels)
        with torch.no_grad():
            expected = module(joints2d, visible).numpy()
        hidden = joints2d.numpy().copy()
        hidden[..., :2][~visible.numpy()] = np.nan  # whatever stands there, the token replaces it
        (found,) = run(None, {"joints2d": hidden, "visible": visible.numpy()})
        assert np.abs(expected).max() > 0.05
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert facts.any_frames == (module.net.output == "valid" or T == 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_a_2d_network_gives_the_same_heatmaps_in_onnxruntime(name):
    module = with_weights(IMAGES[name]())  # with another input than that of new networks:
    module.normalise.load_state_dict(ImageInput("BGR", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).state())
    with torch.no_grad():  # heatmaps of about 1
        largest = module(torch.zeros(1, 96, 64, 3, dtype=torch.uint8)).abs().max()
        for parameter in module.net.final_layer.parameters():
            parameter /= largest
    content, facts = export(copy.deepcopy(module))
    assert facts == find_facts(module)
    generator = torch.Generator().manual_seed(5)
    for batch in (1, 3, 64 if name == "hrnet" else 5):
        images = torch.randint(0, 256, (batch, 96, 64, 3), dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            expected = module(images).numpy()
        (found,) = session(content).run(None, {"images": images.numpy()})
        assert expected.std() > 0.05
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_file_has_no_more_than_its_weights_and_a_page_of_graph():
    module = lift_module("mixste")
    count = sum(parameter.numel() for parameter in module.net.parameters())
    content, _ = exported("mixste")
    model = onnx.load_from_string(content)
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert 0.95 * count < stored < 1.05 * count
    assert len(content) < 4 * stored + 150 * len(model.graph.node) + 5000
    assert b".py" not in content  # the exporter notes where each operator comes from


def test_a_cascade_keeps_the_mlps_in_use_alone():
    module = lift_module("cascade")
    used = sum(p.numel() for mlp in module.net.stages[:2] for p in mlp.parameters())
    content, _ = exported("cascade")
    stored = sum(int(np.prod(t.dims)) for t in onnx.load_from_string(content).graph.initializer)
    assert used * 0.9 < stored < used * 1.1


def test_files_are_valid_and_the_reader_of_untrusted_files_takes_them(tmp_path):
    content, _ = exported("videopose3d")
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    (tmp_path / "x.onnx").write_bytes(content)
    assert read_onnx(tmp_path / "x.onnx").data == content
    shapes = {node.name: node.shape for node in session(content).get_inputs()}
    assert shapes == {"joints2d": ["batch", "frames", 17, 2], "visible": ["batch", "frames", 17]}
    opsets = {o.domain: o.version for o in onnx.load_from_string(content).opset_import}
    assert opsets[""] == 18


def test_metadata_are_complete():
    module = lift_module("centred videopose3d", flip_test=False)
    module.trained_rate, module.trained_sizes = 25, (0.5, 1.25)
    record = json.loads(facts_to_json(find_facts(module, "MIT")))
    assert record["stage"] == "lift"
    assert record["network"] == "VideoPose3D"
    assert record["digest"] == weights_digest(module)
    assert record["licence"] == "MIT"
    assert (record["joints"], record["joint_names"][0], record["parents"][0]) == (
        "H36M17", "pelvis", -1,
    )  # fmt: skip
    assert (record["output"], record["frames"], record["receptive_field"]) == ("valid", 9, 9)
    assert (record["frame_rate"], record["person_sizes"]) == (25.0, [0.5, 1.25])
    assert (record["flip_test"], record["causal"], record["channels"]) == (False, False, 2)
    assert set(record["arrays"]) == {"joints2d", "visible", "joints3d"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frames", 10**9), ("frames", True), ("frames", 0), ("output", "all"), ("joints", "NO17"),
        ("joints", ["H36M17"]), ("frame_rate", -5), ("frame_rate", 1e400), ("person_sizes", [1]),
        ("flip_test", 1), ("version", 2), ("stage", {}), ("licence", 5), ("channels", 9),
    ],
)  # fmt: skip
def test_facts_that_make_no_sense_are_one_line(key, value):
    record = json.loads(facts_to_json(find_facts(lift_module("martinez"))))
    assert read_facts({KEY: json.dumps(record)}, "x.onnx").network == "Martinez"
    text = json.dumps({**record, key: value})
    with pytest.raises(DataError, match=rf"^x\.onnx: heatlift_network in its metadata: .*{key}"):
        read_facts({KEY: text}, "x.onnx")
    del record[key]
    with pytest.raises(DataError, match=f"has no '{key}'"):
        read_facts({KEY: json.dumps(record)}, "x.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "[" * 10000])
def test_damaged_metadata_are_one_line(text):
    with pytest.raises(DataError, match=r"x\.onnx: heatlift_network in its metadata"):
        read_facts({KEY: text}, "x.onnx")
    assert read_facts({"task": "pose"}, "x.onnx") is None


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(uninterrupted):
    """A trained lifter of a few steps."""
    uninterrupted("lift")
    return uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"


def test_the_command_writes_a_file_once(checkpoint, tmp_path, capsys, monkeypatch):
    path = tmp_path / "new" / "x.onnx"
    words = ["weights", "export", str(checkpoint), "-o", str(path)]
    assert main([*words, "--licence", "CC-BY-4.0"]) == 0
    assert "MixSTE, H36M17 (" in capsys.readouterr().out
    content = path.read_bytes()
    assert list(path.parent.iterdir()) == [path]
    metadata = session(content).get_modelmeta().custom_metadata_map
    assert metadata["licence"] == "CC-BY-4.0"
    module = load_module(checkpoint, (LiftModule,))
    facts = read_facts(metadata, path)
    assert (facts.digest, facts.frame_rate) == (weights_digest(module), module.trained_rate)
    assert facts.person_sizes == module.trained_sizes
    assert main(words) == 5
    assert "is there already; choose another -o or give --overwrite" in capsys.readouterr().err
    assert path.read_bytes() == content
    monkeypatch.setattr(onnx_export, "make_onnx", lambda *arguments: b"new")
    assert main([*words, "--overwrite"]) == 0
    assert path.read_bytes() == b"new"


def test_the_help_has_the_options_as_they_are_given(capsys):
    assert main(["weights", "export", "--help"]) == 0
    text = capsys.readouterr().out
    assert "-o OUTPUT" in text
    assert "--output" not in text


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_one_line_tells_how_to_get_it(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.ckpt").touch()
    assert main(["weights", "export", str(tmp_path / "a.ckpt")]) == 2
    error = capsys.readouterr().err
    assert f"a.ckpt: its export needs {name}; pip install 'heatlift[onnx]'" in error
    assert error.count("\n") == 1


def test_files_that_cannot_be_exported_are_one_line(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match=r"a\.ckpt"):
        export_checkpoint(tmp_path / "a.ckpt", tmp_path / "a.onnx")
    with pytest.raises(DataError, match=r"none\.ckpt"):
        export_checkpoint(tmp_path / "none.ckpt", tmp_path / "a.onnx")
    torch.save({"state_dict": {}}, tmp_path / "b.ckpt")
    with pytest.raises(DataError, match=r"b\.ckpt"):
        export_checkpoint(tmp_path / "b.ckpt", tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=r"a\.pt: is no name of an ONNX file; end it with \.onnx"):
        export_checkpoint(tmp_path / "a.ckpt", tmp_path / "a.pt")
    (tmp_path / "a.onnx").touch()
    with pytest.raises(StorageError, match="is there already"):
        export_checkpoint(tmp_path / "a.ckpt", tmp_path / "a.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "b.ckpt", "a.onnx"}


def test_another_result_in_onnxruntime_is_an_error(monkeypatch):
    """An exporter that drops an operator does not get a file written."""
    true = torch.onnx.export

    def without_token(graph, *arguments, **options):
        graph.mask_token.data.zero_()
        program = true(graph, *arguments, **options)
        graph.mask_token = torch.nn.Parameter(torch.full((1, 1, 2), 0.5))
        return program

    monkeypatch.setattr(torch.onnx, "export", without_token)
    module = lift_module("martinez")
    with pytest.raises(DataError, match=r"net\.ckpt: gives other numbers in onnxruntime"):
        make_onnx(module, find_facts(module), "net.ckpt")


def test_a_network_that_cannot_be_exported_is_one_line():
    class Branching(Martinez):
        def lift(self, zscored2d):
            return super().lift(zscored2d) * (2 if zscored2d.sum() > 0 else 1)

    module = LiftModule(Branching(width=8)).eval()
    with pytest.raises(DataError, match=r"^net\.ckpt: cannot be exported to ONNX \(") as error:
        make_onnx(module, find_facts(module), "net.ckpt")
    assert "\n" not in str(error.value)


def test_exports_are_no_weights_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(tmp_path))
    (tmp_path / "onnx" / "abc").mkdir(parents=True)
    (tmp_path / "theirs.onnx").write_bytes(b"x")
    imported = [file.name for file in list_files() if file.what == "imported"]
    assert imported == ["theirs.onnx"]
