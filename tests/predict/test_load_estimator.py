import sys

import numpy as np
import pytest
import torch

from pipeline.errors import DataError, UsageError
from pipeline.heatmap import HRNet
from pipeline.heatmap.module import HeatmapModule
from pipeline.predict.load_estimator import load_estimator
from pipeline.training.checkpoints import load_module, weights_digest
from pipeline.weights.importing import import_weights


def test_without_onnxruntime_one_line_tells_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"net\.onnx: needs onnxruntime; pip install 'heatlift\[o"):
        load_estimator(str(tmp_path / "net.onnx"), "cpu")


def test_a_file_of_another_kind_is_refused():
    with pytest.raises(UsageError, match=r"estimator is net\.pb; give blazepose, .*\.onnx"):
        load_estimator("net.pb", "cpu")
    with pytest.raises(DataError, match=r"net\.onnx: no such file"):
        load_estimator("net.onnx", "cpu")


def published(folder, joints=17):
    """A narrow HRNet with random weights and norms, in a file as they are published."""
    torch.manual_seed(3)
    net = HRNet(8, joints)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        elif isinstance(part, torch.nn.Conv2d):
            part.weight.data = part.weight.data / part.weight[0].norm()
    torch.save(net.state_dict(), folder / "theirs.pth")
    return net.eval()


def test_an_imported_network_finds_the_joints_of_its_own_crops(tmp_path):
    net = published(tmp_path)
    import_weights(
        tmp_path / "theirs.pth", "hrnet", tmp_path / "net.ckpt", skeleton="COCO17",
        input_size=(64, 96), channels="BGR",
    )  # fmt: skip
    estimator, _ = load_estimator(str(tmp_path / "net.ckpt"), "cpu")
    image = np.random.default_rng(5).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    found = estimator.estimate(image, np.array([[31.5, 47.5, 96.0, 0.0]]))
    reference = HeatmapModule(
        net, skeleton="COCO17", input_size=(64, 96), published_cells=True, flip_test=True
    ).eval()
    with torch.no_grad():
        bgr = np.ascontiguousarray(image[..., ::-1])[None]
        joints, score = reference.detect(torch.from_numpy(bgr))
    np.testing.assert_allclose(found.joints2d, joints, atol=1e-3)
    np.testing.assert_allclose(found.score, score.clamp(0, 1), atol=1e-4)
    assert estimator.skeleton.name == "COCO17"
    assert len(np.unique(found.joints2d, axis=1)[0]) > 8  # not all at one place


def test_norms_are_folded_and_the_digest_is_that_of_the_weights(tmp_path):
    published(tmp_path)
    import_weights(tmp_path / "theirs.pth", "hrnet", tmp_path / "net.ckpt")
    estimator, _ = load_estimator(str(tmp_path / "net.ckpt"), "cpu")
    kinds = {type(part) for part in estimator.module.net.modules()}
    assert torch.nn.BatchNorm2d not in kinds
    assert estimator.settings()["norms"] == "folded"
    assert estimator.digest == weights_digest(load_module(tmp_path / "net.ckpt", (HeatmapModule,)))


def test_a_network_without_a_joint_set_is_told_how_to_import_it(tmp_path):
    published(tmp_path, joints=21)
    import_weights(tmp_path / "theirs.pth", "hrnet", tmp_path / "net.ckpt")
    with pytest.raises(DataError, match="import a whole 2D network with its --skeleton"):
        load_estimator(str(tmp_path / "net.ckpt"), "cpu")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, r"get blazepose \(9 MB, Apache-2\.0\)"),
        ("blazepose-full", r"get blazepose-full \(9 MB, "),
        ("blazepose-lite", r"get blazepose-lite \(6 MB, "),
        ("blazepose-heavy", r"get blazepose-heavy \(31 MB, "),
    ],
)
def test_the_line_about_missing_weights_has_their_size(tmp_path, monkeypatch, name, words):
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(tmp_path))
    with pytest.raises(DataError, match=words):
        load_estimator(name, "cpu")
