"""`predict` with exported networks: the numbers of their checkpoints; metadata are checked."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from planar import planar_module, project, walking_clip

from pipeline import Heatlift, Motion
from pipeline.__main__ import main
from pipeline.errors import DataError, UsageError
from pipeline.heatmap import HRNet
from pipeline.heatmap.module import HeatmapModule
from pipeline.integral import SAN
from pipeline.integral.module import IntegralModule
from pipeline.lift import MixSTE, VideoPose3D
from pipeline.lift.module import LiftModule
from pipeline.predict.estimators import StageEstimator
from pipeline.predict.load_estimator import load_estimator
from pipeline.predict.onnx_own import load_onnx_lifter
from pipeline.weights import onnx_export
from pipeline.weights.onnx_export import exported_checkpoint, find_facts, make_onnx
from pipeline.weights.onnx_facts import KEY, read_facts

PAGE = Path(__file__).parents[2] / "docs" / "predict.md"


def write(path, module, licence=""):
    path.write_bytes(make_onnx(module, find_facts(module, licence), "net.ckpt"))
    return path


def change(path, target, **values):
    """A copy of a file whose metadata have other values."""
    model = onnx.load_from_string(path.read_bytes())
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = json.dumps({**json.loads(entry.value), **values})
    target.write_bytes(model.SerializeToString())
    return target


def mixste_module():
    torch.manual_seed(2)
    module = LiftModule(MixSTE(frames=9, dim=16, depth=1, heads=2)).eval()
    module.mask_token.data.copy_(torch.tensor([0.3, -0.7]))
    module.trained_rate, module.trained_sizes = 40.0, (0.5, 1.25)
    return module


@pytest.fixture(scope="module")
def lifter(tmp_path_factory):
    """An exported lifter of 9 frames at 40 Hz."""
    return write(tmp_path_factory.mktemp("lifter") / "net.onnx", mixste_module(), "MIT")


def heatmap_module():
    torch.manual_seed(4)
    net = HRNet(8, stem=8, planes=8, blocks=1, modules=(1, 1, 1))
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        elif isinstance(part, torch.nn.Conv2d):
            part.weight.data = part.weight.data / part.weight[0].norm()
    return HeatmapModule(
        net,
        skeleton="COCO17",
        input_size=(64, 96),
        padding=1.1,
        flip_test=True,
        published_cells=True,
    ).eval()


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """An exported heatmap network."""
    return write(tmp_path_factory.mktemp("detector") / "net.onnx", heatmap_module(), "Apache-2.0")


# ---- lifters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 5, 9, 10, 31, 300])
def test_a_clip_of_any_length_is_lifted_as_by_the_checkpoint(lifter, frames):
    module, loaded = mixste_module(), load_onnx_lifter(lifter, "cpu")
    joints2d = 0.4 * torch.randn(frames, 17, 2)
    visible = torch.rand(frames, 17) > 0.3
    with torch.inference_mode():
        expected, found = module.lift(joints2d, visible), loaded.lift(joints2d, visible)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert float((expected[0] - expected[-1]).abs().max()) > 0.01 or frames == 1


def test_a_lifter_knows_what_predict_needs(lifter):
    module, loaded = mixste_module(), load_onnx_lifter(lifter, "cpu")
    for name in ("frames", "receptive_field", "output", "causal", "first_frame", "skeleton"):
        assert getattr(loaded.net, name) == getattr(module.net, name)
    assert (loaded.trained_rate, loaded.trained_sizes) == (40.0, (0.5, 1.25))
    assert loaded.flip_test == module.flip_test
    assert not loaded.training


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [1, 6, 9, 10, 40])
def test_a_network_over_whole_sequences_lifts_any_length(tmp_path_factory, causal, frames):
    torch.manual_seed(2)
    module = LiftModule(VideoPose3D(widths=(3, 3), channels=16, causal=causal)).eval()
    folder = tmp_path_factory.getbasetemp() / f"videopose3d-{causal}"
    if not folder.exists():
        folder.mkdir()
        write(folder / "net.onnx", LiftModule(module.net).eval())
    loaded = load_onnx_lifter(folder / "net.onnx", "cpu")
    joints2d, visible = 0.4 * torch.randn(frames, 17, 2), torch.rand(frames, 17) > 0.2
    with torch.inference_mode():
        expected, found = module.lift(joints2d, visible), loaded.lift(joints2d, visible)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def joints_file(path, frames=40):
    """2D joints of a walking person, with joints hidden here and there."""
    _, positions = walking_clip(np.arange(frames) / 25)
    joints2d = project(positions, 1000.0)
    score = np.full((frames, 17, 1), 0.9)
    score[5:12, 3] = score[20, :9] = 0.05
    records = [
        {
            "image_id": f"{n}.jpg",
            "keypoints": np.concatenate([joints2d[n], score[n]], -1).ravel().tolist(),
            "idx": 4,
        }
        for n in range(frames)
    ]
    path.write_text(json.dumps(records))
    return path


def test_motion_is_that_of_the_checkpoint_and_tells_what_computed_it(lifter, tmp_path):
    path = joints_file(tmp_path / "joints.json")
    flags = {"size": "1280x720", "joints": "H36M17", "fps": 25.0}
    cpu = torch.device("cpu")
    expected = Heatlift(mixste_module(), "net.ckpt", None, cpu).predict(path, **flags)
    motion = Heatlift.load(lifter, device="cpu").predict(path, **flags)
    for name in ("joints3d", "root"):
        one, two = (getattr(m.people[0], name) for m in (motion, expected))
        np.testing.assert_allclose(one, two, atol=1e-4 if name == "joints3d" else 1e-3)
    facts = motion.facts["weights"]["lifter"]
    assert facts == {
        **expected.facts["weights"]["lifter"],
        "name": "net.onnx",
        "runtime": "onnxruntime",
        "licence": "MIT",
        "digest": facts["digest"],
    }
    assert facts["digest"] != expected.facts["weights"]["lifter"]["digest"]  # that of the file


def test_a_file_that_is_no_lifter_of_ours_is_one_line(lifter, detector, tmp_path):
    load = load_onnx_lifter
    with pytest.raises(
        DataError, match=r"net\.onnx: is a network of stage heatmap; give it as --e"
    ):
        load(detector, "cpu")
    (tmp_path / "none.onnx").write_bytes(b"\x08\x08junk")
    with pytest.raises(DataError, match=r"none\.onnx: is no ONNX file, or damaged"):
        load(tmp_path / "none.onnx", "cpu")
    model = onnx.load_from_string(lifter.read_bytes())
    del model.metadata_props[:]
    (tmp_path / "bare.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"bare\.onnx: is no lifter of Heatlift; make one"):
        load(tmp_path / "bare.onnx", "cpu")


def test_metadata_that_lie_are_one_line(lifter, detector, tmp_path):
    clip = torch.zeros(20, 17, 2), torch.ones(20, 17, dtype=torch.bool)
    wrong = change(lifter, tmp_path / "a.onnx", output="centre")
    with pytest.raises(DataError, match=r"a\.onnx: gives .*9, 17, 3.* metadata tell .*1, 17, 3"):
        load_onnx_lifter(wrong, "cpu").lift(*clip)
    wrong = change(lifter, tmp_path / "b.onnx", frames=11)
    with pytest.raises(DataError, match=r"b\.onnx: onnxruntime fails"):
        load_onnx_lifter(wrong, "cpu").lift(*clip)
    record = json.loads(onnx_facts(detector))
    wrong = change(lifter, tmp_path / "c.onnx", **record)
    with pytest.raises(DataError, match=r"c\.onnx: its metadata and its graph differ"):
        load_estimator(str(wrong), "cpu")
    wrong = change(detector, tmp_path / "d.onnx", joints="H36M18")
    estimator, _ = load_estimator(str(wrong), "cpu")
    with pytest.raises(DataError, match=r"d\.onnx: gives \(1, 17, 24, 16\), .* \(1, 18, 24, 16\)"):
        estimator.estimate(np.zeros((96, 64, 3), np.uint8), np.array([[31.5, 47.5, 96.0, 0.0]]))


def onnx_facts(path):
    model = onnx.load_from_string(path.read_bytes())
    return next(entry.value for entry in model.metadata_props if entry.key == KEY)


# ---- estimators ----------------------------------------------------------------------------------


def some_crops():
    generator = np.random.default_rng(5)
    image = generator.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    crops = np.stack([generator.uniform(50, 150, 20), generator.uniform(50, 150, 20)], -1)
    return image, np.concatenate([crops, generator.uniform(60, 140, (20, 1)), 0 * crops[:, :1]], 1)


def check_estimator(path, module):
    """An estimator gives the joints of a module to 1e-3 pixels; returns it."""
    estimator, _ = load_estimator(str(path), "cpu")
    assert isinstance(estimator, StageEstimator)
    reference = StageEstimator(module, "net", "5")
    assert estimator.settings() == reference.settings()
    image, crops = some_crops()
    found, expected = (e.estimate(image, crops) for e in (estimator, reference))
    np.testing.assert_allclose(found.joints2d, expected.joints2d, atol=1e-3)
    np.testing.assert_allclose(found.score, expected.score, atol=1e-4)
    np.testing.assert_allclose(found.next_crops, expected.next_crops, atol=1e-2)
    assert len(np.unique(expected.joints2d.round(2))) > 100  # not all at one place
    boxes = np.array([[10.0, 20.0, 50.0, 130.0]])
    np.testing.assert_allclose(estimator.crops_of_boxes(boxes), reference.crops_of_boxes(boxes))
    assert estimator.skeleton == module.skeleton
    return estimator


def test_a_2d_network_finds_the_joints_of_its_checkpoint(detector):
    estimator = check_estimator(detector, heatmap_module())
    assert (estimator.name, estimator.licence) == ("net", "Apache-2.0")
    assert len(estimator.digest) == 64


@pytest.mark.slow
def test_a_network_with_3d_heatmaps_finds_the_joints_of_its_checkpoint(tmp_path):
    torch.manual_seed(6)
    module = IntegralModule(SAN(depth_bins=4), input_size=(64, 96), cube=1.5, flip_test=True).eval()
    torch.nn.init.normal_(module.net.final_layer.weight, std=3.0)
    module.net.attention.delta.data.fill_(0.5)
    check_estimator(write(tmp_path / "net.onnx", module), module)


def test_a_lifter_is_no_estimator(lifter):
    with pytest.raises(DataError, match=r"net\.onnx: is a lifter; give it as --lifter"):
        load_estimator(str(lifter), "cpu")


# ---- the option ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(uninterrupted):
    """A trained lifter of a few steps."""
    uninterrupted("lift")
    return uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"


def test_the_option_exports_a_checkpoint_once_and_gives_its_motion(
    checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(tmp_path / "weights"))
    path = joints_file(tmp_path / "joints.json")
    words = ["predict", str(path), "--size", "1280x720", "--joints", "H36M17", "--no_video"]
    words += ["--lifter", str(checkpoint)]
    assert main([*words, "-o", str(tmp_path / "a")]) == 0
    assert main([*words, "-o", str(tmp_path / "b"), "--runtime", "onnx"]) == 0
    monkeypatch.setattr(onnx_export, "make_onnx", None)  # not a second time
    assert main([*words, "-o", str(tmp_path / "c"), "--runtime", "onnx"]) == 0
    a, b, c = (Motion.load(tmp_path / name / "motion.npz") for name in "abc")
    np.testing.assert_allclose(b.people[0].joints3d, a.people[0].joints3d, atol=1e-4)
    assert c.people[0].joints3d.tobytes() == b.people[0].joints3d.tobytes()
    assert [m.facts["weights"]["lifter"]["runtime"] for m in (a, b)] == ["torch", "onnxruntime"]
    assert b.facts["weights"]["lifter"]["name"] == "lift"
    (exported,) = (tmp_path / "weights").glob("**/*.onnx")
    assert exported.name == "best.onnx"
    capsys.readouterr()
    assert main([*words, "-o", str(tmp_path / "d"), "--runtime", "tensorrt"]) == 2
    assert "'torch', 'onnx'" in capsys.readouterr().err


def test_another_checkpoint_under_the_same_name_is_exported_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(tmp_path / "weights"))
    made = []

    def export(checkpoint, output, **options):
        made.append(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()

    monkeypatch.setattr(onnx_export, "export_checkpoint", export)
    for content in (b"one", b"one", b"two"):
        (tmp_path / "best.ckpt").write_bytes(content)
        assert exported_checkpoint(tmp_path / "best.ckpt").name == "best.onnx"
    assert len(made) == len(set(made)) == 2
    with pytest.raises(DataError, match=r"none\.ckpt: no such file"):
        exported_checkpoint(tmp_path / "none.ckpt")


def test_without_the_extra_one_line_tells_how_to_get_it(lifter, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for path, runtime in ((lifter, "torch"), (checkpoint, "onnx")):
        with pytest.raises(UsageError, match=r"needs onnxruntime; pip install 'heatlift\[onnx\]'"):
            Heatlift.load(path, device="cpu", runtime=runtime)


def test_an_exported_estimator_runs_in_predict(detector, tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    cv2 = pytest.importorskip("cv2")
    image, _ = some_crops()
    for n in range(5):
        cv2.imwrite(str(_folder(tmp_path) / f"{n}.png"), image)
    heatlift = Heatlift(planar_module(), "planar", str(detector), torch.device("cpu"))
    motion = heatlift.predict(tmp_path / "images", det_thr=0.5)
    facts = motion.facts["weights"]["estimator"]
    assert (facts["name"], facts["licence"]) == ("net", "Apache-2.0")


def _folder(tmp_path):
    (tmp_path / "images").mkdir(exist_ok=True)
    return tmp_path / "images"


# ---- the example of the page ---------------------------------------------------------------------


def test_the_example_of_the_page_needs_onnxruntime_and_numpy_alone(lifter, tmp_path, monkeypatch):
    text = PAGE.read_text()
    example = re.search(r"```python\n(import json\n.*?)```", text, re.DOTALL)[1]
    imported = set(re.findall(r"^import (\w+)", example, re.MULTILINE))
    assert imported == {"json", "numpy", "onnxruntime"}
    (tmp_path / "lifter.onnx").write_bytes(lifter.read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    facts = read_facts({KEY: onnx_facts(lifter)}, lifter)
    assert names["joints3d"].shape == (1, facts.frames, 17, 3)
    module = mixste_module()
    joints2d, visible = (torch.from_numpy(names[key]) for key in ("joints2d", "visible"))
    with torch.no_grad():
        expected = module(joints2d, visible)
    np.testing.assert_allclose(names["joints3d"], expected, atol=1e-4)
