from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.__main__ import main
from pipeline.detections.cache import load_detector
from pipeline.errors import DataError, UsageError
from pipeline.files import torch_files
from pipeline.heatmap import HeatmapModule, HRNet, SimpleBaseline
from pipeline.heatmap.resnet import ResNet
from pipeline.integral import SAN
from pipeline.lift import Martinez, MixSTE, PoseFormer, VideoPose3D
from pipeline.lift.martinez import ResidualMLP
from pipeline.lift.module import LiftModule
from pipeline.skeleton import H36M17
from pipeline.training import checkpoints
from pipeline.weights import architectures, matching, published_files
from pipeline.weights.importing import import_weights
from pipeline.weights.matching import load_published
from pipeline.weights.published_files import read_published

SHARED = Path(os.environ.get("HEATLIFT_SHARED", Path(__file__).parents[3] / "shared"))
GOLDEN = sorted((SHARED / "golden").glob("*.npz"))
BUILD = {
    "hrnet": lambda c: HRNet(c["width"], c["joints"]),
    "martinez": lambda c: ResidualMLP(c["inputs"], c["outputs"], c["width"], c["blocks"]),
    "mixste": lambda c: MixSTE(**c),
    "poseformer": lambda c: PoseFormer(**c),
    "simple_baseline": lambda c: SimpleBaseline(c["layers"], c["joints"]),
    "videopose3d": lambda c: VideoPose3D(**c),
    "san": lambda c: SAN(
        c["layers"], c["joints"], c["depth_bins"], attention=c.get("attention", True)
    ),
    "integral": lambda c: SAN(c["layers"], c["joints"], c["depth_bins"], attention=False),
    "resnet": lambda c: ResNet(c["layers"]),
}
"""Kind in a golden file -> our network; `integral` is 3DMPPE's, too, `resnet` a trunk alone."""


def golden_network(meta):
    """Our network for the metadata of a golden file."""
    kind, config = meta["kind"], meta["config"]
    if kind not in BUILD:
        pytest.fail(f"golden files of kind {kind} have no network in BUILD: {', '.join(BUILD)}")
    try:
        return BUILD[kind](config)
    except (KeyError, TypeError) as error:
        pytest.fail(f"config {config} does not make a {kind}: {error!r}")


def our_shapes(weights):
    """Shapes of published weights under our names."""
    renamed, _ = matching.rename_weights(published_files.extract_weights(weights), "golden")
    return {name: list(tensor.shape) for name, tensor in renamed.items()}


def golden_weights(keys):
    """Weights as the golden folder's README makes them."""
    weights = OrderedDict()
    for name, shape in keys:
        random = np.random.RandomState(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if name.endswith("running_var"):
            array = random.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            array = 0.1 * random.standard_normal(shape)
        elif len(shape) >= 2:
            array = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        else:
            array = name.endswith("weight") + 0.1 * random.standard_normal(shape)
        weights[name] = torch.from_numpy(np.asarray(array, dtype=np.float32))
    return weights


@pytest.mark.skipif(not GOLDEN, reason=f"no golden outputs in {SHARED}")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_output_of_the_published_implementation_is_reproduced(path):
    with np.load(path) as file:
        meta, expected = json.loads(bytes(file["meta"])), file["output"]
    net = golden_network(meta)
    assert sum(p.numel() for p in net.parameters()) == meta["params"]
    weights = golden_weights(meta["keys"])
    shapes = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    trunk = meta["kind"] == "resnet"
    given = {
        name: shape
        for name, shape in our_shapes(weights).items()
        if not (trunk and matching.NOT_BACKBONE.match(name))
    }
    assert shapes == given
    load_published(net, weights, "backbone" if trunk else "whole")
    random = np.random.RandomState(0)
    inputs = (0.5 * random.standard_normal(meta["input_shape"])).astype(np.float32)
    with torch.inference_mode():
        seen = (net.eval().features if trunk else net.eval())(torch.from_numpy(inputs))
    output = seen.numpy().reshape(meta["output_shape"])  # joints and bins may be one axis there
    steps = [1] * output.ndim if meta["kept"] == "all" else meta["kept"]
    output = output[tuple(slice(None, None, step) for step in steps)]
    assert np.abs(output - expected).max() <= 1e-5 * np.abs(expected).max()


def test_every_golden_key_list_is_in_the_published_order_for_lifters():
    for path in GOLDEN:
        with np.load(path) as file:
            meta = json.loads(bytes(file["meta"]))
        if meta["kind"] in ("mixste", "videopose3d", "martinez"):
            net = golden_network(meta)
            assert list(net.state_dict()) == list(our_shapes(golden_weights(meta["keys"])))


def test_a_golden_file_of_another_kind_is_named():
    with pytest.raises(pytest.fail.Exception, match="of kind mhformer have no network in BUILD"):
        golden_network({"kind": "mhformer", "config": {}})
    with pytest.raises(pytest.fail.Exception, match="does not make a san: KeyError"):
        golden_network({"kind": "san", "config": {"width": 64}})


def test_golden_keys_may_have_any_published_layout():
    keys = [["module.res_blocks.0.w1.weight", [4, 4]], ["module.w1.weight", [4, 6]]]
    expected = {"linear_stages.0.w1.weight": [4, 4], "w1.weight": [4, 6]}
    assert our_shapes(golden_weights(keys)) == expected


def small_mixste(seed=0):
    torch.manual_seed(seed)
    return MixSTE(frames=3, dim=16, depth=2)


def published_training_file(net):
    """What the published scripts save: weights of a DataParallel, optimiser, random state."""
    optimizer = torch.optim.AdamW(net.parameters())
    state = np.random.RandomState(7)
    return {
        "epoch": 12,
        "lr": np.float64(4e-5),
        "random_state": state,
        "random_numbers": state.get_state(),
        "optimizer": optimizer.state_dict(),
        "model_pos": {f"module.{name}": value for name, value in net.state_dict().items()},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_file_with_random_state_and_optimiser_loads(tmp_path, zipped):
    theirs, ours = small_mixste(1), small_mixste(2)
    path = tmp_path / "best_epoch.bin"
    torch.save(published_training_file(theirs), path, _use_new_zipfile_serialization=zipped)
    report = load_published(ours, path)
    assert all(
        torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items()
    )
    assert len(report.loaded) == len(theirs.state_dict())
    assert (report.kept, report.dropped) == ((), ())
    assert len(report.digest) == 64


class OldRandomState:
    """Pickles as NumPy 1.16's RandomState did."""

    def __reduce__(self):
        state = np.random.RandomState(7).get_state()
        return getattr(np.random, "__RandomState_ctor"), (), state


def test_random_state_pickled_by_numpy_1_loads(tmp_path):
    path = tmp_path / "old.bin"
    content = {"random_state": OldRandomState(), "model": {"w": torch.ones(2)}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"__RandomState_ctor" in data
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert list(read_published(path)) == ["w"]


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_file_that_wants_to_run_something_is_rejected_by_name(tmp_path, zipped):
    canary, path = tmp_path / "canary", tmp_path / "hostile.bin"
    content = {"model_pos": small_mixste().state_dict(), "random_state": Hostile(canary)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        DataError, match=r"hostile.bin: rejected: it wants to run (posix|os)\.system"
    ):
        read_published(path)
    assert not canary.exists()


@pytest.mark.parametrize("gadget", [np.load, eval, pickle.loads, torch.load, np.random.seed])
def test_other_functions_are_rejected_too(tmp_path, gadget):
    class Gadget:
        def __reduce__(self):
            return gadget, ("0",)

    path = tmp_path / "gadget.bin"
    torch.save({"w": torch.ones(1), "x": Gadget()}, path)
    with pytest.raises(DataError, match=r"gadget\.bin"):
        read_published(path)


def test_names_allowed_while_reading_are_not_allowed_afterwards(tmp_path):
    path = tmp_path / "weights.bin"
    torch.save(published_training_file(small_mixste()), path)
    read_published(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is no checkpoint", b"PK\x03\x04" + bytes(64)]
)
def test_odd_files_are_one_line_of_error(tmp_path, content):
    path = tmp_path / "odd.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.bin") as error:
        read_published(path)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder_are_errors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_published(tmp_path / "nothing.bin")
    with pytest.raises(DataError, match="not a file"):
        read_published(tmp_path)


def legacy_file(path: Path, *operations: bytes, tail: bytes = b"") -> Path:
    """A file as torch wrote them before zips, with these operations as its content."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    pickles = [pickle.dumps(what, protocol=2) for what in head]
    path.write_bytes(b"".join([*pickles, *(b"\x80\x02" + one + b"." for one in operations), tail]))
    return path


def zip_file(path: Path, operations: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + operations + b".")
        archive.writestr("a/version", "3\n")
    return path


HUGE_BYTES = b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R"
HUGE_STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    b"J\xff\xff\xff\x7fNtQ"
)


def rejected_bombs(folder: Path) -> dict[Path, str]:
    """Small files that would take much memory, and a part of the error for each."""
    wide = {f"w{i}.weight": torch.zeros(1).expand(4000, 4000) for i in range(40)}
    for name, zipped in (("wide.zip", True), ("wide.old", False)):
        torch.save(wide, folder / name, _use_new_zipfile_serialization=zipped)
    shared = torch.zeros(1000, 1000)
    torch.save({f"w{i}": shared.T for i in range(1000)}, folder / "shared")
    text = b"(X\xff\xff\x3f\x00" + b"a" * 0x3FFFFF + b"q\x01X\x06\x00\x00\x00latin1q\x02l"
    copies = b"](" + text[1:-1] + b"c_codecs\nencode\nh\x01h\x02\x86R" * 1000 + b"e"
    return {
        legacy_file(folder / "bytes.old", HUGE_BYTES): "wants to run builtins.bytearray",
        legacy_file(folder / "keys.old", b"}", HUGE_BYTES): "wants to run builtins.bytearray",
        zip_file(folder / "bytes.zip", HUGE_BYTES): "wants to run builtins.bytearray",
        legacy_file(folder / "storage.old", HUGE_STORAGE, b"]"): "more numbers than it holds",
        zip_file(folder / "copies.zip", copies): "more memory than it should",
        legacy_file(folder / "long.old", b"](" + b"N" * 20_000_000 + b"e"): "operations",
        folder / "wide.zip": "w39.weight claims more numbers than the file holds",
        folder / "wide.old": "w39.weight claims more numbers than the file holds",
        folder / "shared": "its tensors claim more numbers than the file holds",
    }


@pytest.mark.slow
def test_small_files_take_no_memory(tmp_path):
    bombs = rejected_bombs(tmp_path)
    code = (
        "import sys; from pipeline.weights.importing import import_weights\n"
        "for path in sys.argv[1:]:\n"
        "    try: import_weights(path, 'mixste', path + '.ckpt')\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
        "    else: print('imported')\n"
        "status = open('/proc/self/status').read()\n"  # getrusage counts who started this too
        "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)"
    )
    command = [sys.executable, "-c", code, *map(str, bombs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, most = done.stdout.splitlines()
    for line, (path, text) in zip(lines, bombs.items(), strict=True):
        assert line.startswith(f"DataError {path}: ")
        assert text in line
    assert int(most) < 1000  # MiB, of which torch is 300


def test_a_file_of_two_formats_is_read_as_torch_reads_it(tmp_path):
    path = legacy_file(tmp_path / "both.bin", HUGE_BYTES)
    torch.save({"w": torch.ones(2)}, tmp_path / "whole.bin")
    with path.open("ab") as file:
        file.write((tmp_path / "whole.bin").read_bytes())
    with pytest.raises(DataError, match=r"wants to run builtins\.bytearray"):
        read_published(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_that_are_not_finite_are_rejected(tmp_path, zipped, value):
    path = tmp_path / "nan.bin"
    content = {"a": torch.ones(2), "b": torch.tensor([1.0, value])}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"nan\.bin: b is not finite"):
        read_published(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_parts_transposed_and_tied_weights_are_read(tmp_path, zipped):
    whole = torch.arange(12.0).reshape(3, 4)
    content = {"whole": whole, "tied": whole, "part": whole[1:, ::2], "turned": whole.T}
    content |= {"none": torch.zeros(0, 3), "one": torch.tensor(3), "half": whole.bfloat16()}
    torch.save(content, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    found = read_published(tmp_path / "a.bin")
    assert all(torch.equal(found[name], value) for name, value in content.items())


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_flipped_bit_is_found(tmp_path, place):
    path = tmp_path / "weights.bin"
    torch.save(published_training_file(small_mixste()), path)
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    data = bytearray(path.read_bytes())
    data[member.header_offset + 200 + int(place * (member.file_size - 200))] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        read_published(path)


def test_packed_members_are_rejected(tmp_path):
    path, packed = tmp_path / "weights.bin", tmp_path / "packed.bin"
    torch.save({"w": torch.zeros(100_000)}, path)
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(DataError, match="packed members"):
        read_published(packed)


@pytest.mark.parametrize("wrapper", [None, "model_pos", "state_dict", "network", "model"])
@pytest.mark.parametrize("parallel", ["", "module."])
def test_wrapped_state_dicts_load(wrapper, parallel):
    theirs, ours = small_mixste(1), small_mixste(2)
    state = {parallel + name: value for name, value in theirs.state_dict().items()}
    load_published(ours, {wrapper: state, "epoch": 3} if wrapper else state)
    assert torch.equal(ours.head[1].weight, theirs.head[1].weight)


def break_missing(state):
    del state["head.1.bias"]


def break_surplus(state):
    state["head.2.bias"] = torch.zeros(3)


def break_shape(state):
    state["head.1.bias"] = torch.zeros(4)


def break_number(state):
    state["head.1.bias"][1] = torch.nan


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (break_missing, r"1 missing \(head.1.bias\)"),
        (break_surplus, r"1 left over \(head.2.bias\)"),
        (break_shape, r"head.1.bias is \(4,\) there and \(3,\) here"),
        (break_number, "head.1.bias is not finite"),
    ],
)
def test_state_dict_that_does_not_fit_changes_nothing(fault, text):
    theirs, ours = small_mixste(1), small_mixste(2)
    before = copy.deepcopy(ours.state_dict())
    state = copy.deepcopy(theirs.state_dict())
    fault(state)
    with pytest.raises(DataError, match=text):
        load_published(ours, state)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_weights_of_another_network_are_rejected():
    with pytest.raises(DataError, match="none of its"):
        load_published(small_mixste(), {"fc.weight": torch.zeros(2, 2)})


def test_evoskeleton_names_become_ours():
    theirs, ours = ResidualMLP(32, 48, 16, 3), ResidualMLP(32, 48, 16, 3)
    state = {
        name.replace("linear_stages", "res_blocks"): value
        for name, value in theirs.state_dict().items()
    }
    report = load_published(ours, state)
    assert report.layout == "EvoSkeleton"
    assert torch.equal(
        ours.linear_stages[2].w2.weight, theirs.state_dict()["linear_stages.2.w2.weight"]
    )


@pytest.mark.parametrize("layout", ["3DMPPE", "Integral"])
def test_integral_resnets_load_into_a_san_without_attention(layout):
    torch.manual_seed(0)
    theirs, ours = SAN(50, 2, 4, attention=False), SAN(50, 2, 4, attention=False)
    head = "head." if layout == "3DMPPE" else "head.features."

    def rename(name):
        if name.startswith("deconv_layers."):
            return (
                name.replace("deconv_layers.", head + "deconv_layers.")
                if (layout == "3DMPPE")
                else name.replace("deconv_layers.", head)
            )
        if name.startswith("final_layer."):
            return head + (name if layout == "3DMPPE" else name.replace("final_layer", "9"))
        return f"backbone.{name}"

    state = {f"module.{rename(name)}": value for name, value in theirs.state_dict().items()}
    assert load_published(ours, {"network": state, "epoch": 1}).layout == layout
    assert torch.equal(ours.final_layer.weight, theirs.final_layer.weight)
    assert torch.equal(ours.deconv_layers[6].weight, theirs.deconv_layers[6].weight)
    with_attention = SAN(50, 2, 4)
    with pytest.raises(DataError, match=r"7 missing \(attention.delta"):
        load_published(with_attention, state)
    report = load_published(with_attention, state, "base")
    assert all(name.startswith("attention.") for name in report.kept)


def test_imagenet_resnet_gives_its_backbone_and_drops_its_classifier():
    torch.manual_seed(0)
    theirs, ours = SimpleBaseline(50), SimpleBaseline(50)
    head = ours.final_layer.weight.clone()
    state = {
        name: value
        for name, value in theirs.state_dict().items()
        if not name.startswith(("deconv", "final")) and "num_batches" not in name
    }
    state |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    with pytest.raises(DataError, match="missing"):
        load_published(ours, state)
    report = load_published(ours, state, "backbone")
    assert report.dropped == ("fc.bias", "fc.weight")
    assert torch.equal(ours.layer4[2].conv3.weight, theirs.layer4[2].conv3.weight)
    assert torch.equal(ours.final_layer.weight, head)


def narrow_hrnet(**options):
    return HRNet(8, 4, stem=8, planes=8, blocks=1, modules=(1, 1, 1), **options)


def test_imagenet_hrnet_gives_its_backbone_and_drops_what_only_the_classifier_uses():
    theirs, ours = narrow_hrnet(), narrow_hrnet(attention=((1, 1),))
    state = {
        name: value
        for name, value in theirs.state_dict().items()
        if not name.startswith("final_layer")
    }
    extra = ["classifier.weight", "incre_modules.0.0.conv1.weight", "final_layer.0.weight"]
    extra += ["stage4.0.fuse_layers.1.0.0.0.weight"]
    state |= {name: torch.zeros(1) for name in extra}
    report = load_published(ours, state, "backbone")
    assert report.dropped == tuple(sorted(extra))
    assert all(name.startswith(("final_layer", "attention")) for name in report.kept)


def test_poseformer_weights_load_into_poseformer_with_group_attention_and_change_nothing():
    torch.manual_seed(0)
    base = PoseFormer(frames=9, dim=16, depth=2).eval()
    extended = PoseFormer(frames=9, dim=16, depth=2, group_attention=True).eval()
    load_published(extended, base.state_dict(), "base")
    clips = torch.randn(2, 9, 17, 2)
    torch.testing.assert_close(extended(clips), base(clips), rtol=0, atol=0)


def test_there_is_no_backbone_in_a_lifter_and_no_other_part():
    with pytest.raises(UsageError, match="no backbone"):
        load_published(small_mixste(), small_mixste().state_dict(), "backbone")
    with pytest.raises(UsageError, match="no part 'half'"):
        load_published(small_mixste(), small_mixste().state_dict(), "half")  # type: ignore[arg-type]


def write_statistics(path, joints2d=16, **changes):
    random = np.random.default_rng(0)
    members = {
        "mean2d": random.uniform(300, 700, (joints2d, 2)),
        "deviation2d": random.uniform(50, 150, 2 * joints2d),
        "mean3d": random.uniform(-200, 200, (16, 3)),
        "deviation3d": random.uniform(50, 300, 48),
        "metres": 0.001,
        "size": (1000, 800),
    }
    members |= changes
    np.savez(path, **members)
    return members


def test_residual_mlp_file_needs_its_statistics_to_become_a_martinez(tmp_path):
    torch.manual_seed(0)
    theirs = ResidualMLP(32, 48, 16, 2).eval()
    net = Martinez(16, unseen=["nose"]).eval()
    file = {"epoch": 3, "err": 45.5, "state_dict": theirs.state_dict(), "optimizer": {}}
    with pytest.raises(DataError, match="--stats"):
        load_published(net, file)
    stats = write_statistics(tmp_path / "stats.npz")
    load_published(net, file, stats=tmp_path / "stats.npz")
    pixels = np.random.default_rng(1).uniform(200, 800, (3, 17, 2))
    seen = [j for j, name in enumerate(H36M17.joints) if name != "nose"]
    scored = (pixels[:, seen] - stats["mean2d"]).reshape(3, 32) / stats["deviation2d"]
    with torch.inference_mode():
        answer = theirs(torch.from_numpy(scored).float()).numpy()
        clips = torch.from_numpy(pixels * 2 / 1000 - (1, 0.8)).float()[None]
        ours = net(clips)[0].numpy()
    millimetres = answer * stats["deviation3d"] + stats["mean3d"].ravel()
    np.testing.assert_allclose(ours[:, 1:].reshape(3, 48), millimetres / 1e3, atol=1e-5)
    assert not ours[:, 0].any()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"deviation3d": np.zeros(48)}, "deviation3d is not positive"),
        ({"mean3d": np.full(48, np.nan)}, "not finite"),
        ({"mean2d": np.zeros(34)}, "not a file of statistics"),
        ({"metres": np.array(None)}, "not a file of statistics"),
    ],
)
def test_odd_statistics_are_rejected(tmp_path, changes, text):
    write_statistics(tmp_path / "stats.npz", **changes)
    with pytest.raises(DataError, match=text):
        matching.read_statistics(tmp_path / "stats.npz", 16)


IMPORTS = {
    "mixste": lambda: MixSTE(frames=5, dim=16, depth=3),
    "poseformer": lambda: PoseFormer(frames=9, dim=16, depth=2),
    "videopose3d": lambda: VideoPose3D(widths=(3, 5), channels=8),
    "hrnet": lambda: HRNet(8, 16),
    "simple_baseline": lambda: SimpleBaseline(50, 16),
    "san": lambda: SAN(50, 3, 72, attention=False),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_import_reads_the_sizes_off_the_weights(tmp_path, name):
    theirs = IMPORTS[name]()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    import_weights(tmp_path / "theirs.pth", name, tmp_path / "ours.ckpt")
    content = torch_files.read_checkpoint(tmp_path / "ours.ckpt")
    net = content["heatlift"]["net"]
    assert net["class_path"].endswith(type(theirs).__name__)
    ours = type(theirs)(**net["init_args"])
    state = {
        key.removeprefix("net."): value
        for key, value in content["state_dict"].items()
        if key.startswith("net.")
    }
    ours.load_state_dict(state)
    assert content["heatlift"]["published"]["source"].endswith("theirs.pth")


def test_import_of_a_residual_mlp_carries_its_statistics(tmp_path):
    torch.save({"state_dict": ResidualMLP(32, 48, 16, 3).state_dict()}, tmp_path / "weigq.pth")
    with pytest.raises(DataError, match="--stats"):
        import_weights(tmp_path / "weigq.pth", "martinez", tmp_path / "ours.ckpt")
    assert not (tmp_path / "ours.ckpt").exists()
    write_statistics(tmp_path / "stats.npz")
    import_weights(
        tmp_path / "weigq.pth", "martinez", tmp_path / "ours.ckpt", tmp_path / "stats.npz"
    )
    content = torch_files.read_checkpoint(tmp_path / "ours.ckpt")
    arguments = content["heatlift"]["net"]["init_args"]
    assert arguments == {"width": 16, "blocks": 3, "unseen": ["nose"]}
    assert "net.deviation3d" in content["state_dict"]


def test_import_rejects_what_it_cannot_do(tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save(small_mixste().state_dict(), path)
    with pytest.raises(UsageError, match="take one of mixste, poseformer"):
        import_weights(path, "mhformer", tmp_path / "ours.ckpt")
    with pytest.raises(DataError, match="is not a hrnet"):
        import_weights(path, "hrnet", tmp_path / "ours.ckpt")
    with pytest.raises(UsageError, match="is the input"):
        import_weights(path, "mixste", path)


@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_help_on_importing_names_each_network(name, capsys):
    assert main(["weights", "import", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"\b{name}\b", text)
    assert "FILE [--as NETWORK] [-o OUTPUT]" in text
    assert "--as_" not in text
    assert all(field in text for field in (*matching.STATISTICS, "metres", "size"))
    assert "heads" in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda weight: weight.to(torch.int64), "head.0.weight is int64, and weights are real"),
        (lambda weight: weight.to(torch.complex64), "head.0.weight is complex64"),
        (lambda weight: weight > 0, "head.0.weight is bool"),
    ],
)
def test_weights_that_are_no_real_numbers_are_rejected(change, text):
    state = small_mixste().state_dict()
    state["head.0.weight"] = change(state["head.0.weight"])
    net = small_mixste(1)
    before = checkpoints.weights_digest(net)
    with pytest.raises(DataError, match=text):
        load_published(net, state)
    assert checkpoints.weights_digest(net) == before


def test_weights_of_less_or_more_precision_load():
    state = {name: value.double() for name, value in small_mixste().state_dict().items()}
    net = small_mixste(1)
    load_published(net, state)
    assert torch.equal(net.head[1].weight, state["head.1.weight"].float())


@pytest.mark.parametrize("legacy", [False, True])
def test_another_network_in_the_file_is_named_as_dropped(tmp_path, legacy):
    theirs = VideoPose3D(widths=(3, 5), channels=8)
    file = {"model_pos": theirs.state_dict(), "model_traj": theirs.state_dict(), "epoch": 3}
    torch.save(file, tmp_path / "both.bin", _use_new_zipfile_serialization=not legacy)
    report = import_weights(tmp_path / "both.bin", "videopose3d", tmp_path / "ours.ckpt")
    assert report.dropped == ("model_traj",)
    assert "1 dropped (model_traj)" in str(report)
    content = torch_files.read_checkpoint(tmp_path / "ours.ckpt")
    assert content["heatlift"]["published"]["dropped"] == ["model_traj"]
    assert load_published(theirs, file).dropped == ("model_traj",)
    assert load_published(theirs, {"model_pos": theirs.state_dict()}).dropped == ()


def test_a_residual_mlp_with_a_root_is_named_not_its_statistics(tmp_path):
    torch.save({"state_dict": ResidualMLP(34, 51, 16, 2).state_dict()}, tmp_path / "mlp.pth")
    write_statistics(tmp_path / "stats.npz", joints2d=17)
    for stats in (None, tmp_path / "stats.npz"):
        with pytest.raises(DataError, match=r"mlp.w2.bias is \(51,\) there and \(48,\) here"):
            import_weights(tmp_path / "mlp.pth", "martinez", tmp_path / "ours.ckpt", stats)


def test_sizes_that_no_network_has_are_an_error_of_the_file(tmp_path):
    torch.save(with_kernels(3, 4), tmp_path / "odd.bin")
    with pytest.raises(DataError, match=r"odd.bin: has sizes .*\(3, 4\) must be odd"):
        import_weights(tmp_path / "odd.bin", "videopose3d", tmp_path / "ours.ckpt")
    state = small_mixste().state_dict()
    state["Spatial_patch_to_embedding.weight"] = torch.zeros(20)
    torch.save(state, tmp_path / "odd.bin")
    with pytest.raises(DataError, match=r"odd.bin: is not a mixste: a weight has too many or few"):
        import_weights(tmp_path / "odd.bin", "mixste", tmp_path / "ours.ckpt")


def with_kernels(*kernels):
    """Weights of a VideoPose3D whose convolutions see so many frames, even or not."""
    state = VideoPose3D(widths=(3,) * len(kernels), channels=8).state_dict()
    names = ["expand_conv.weight", *(f"layers_conv.{2 * i}.weight" for i in range(len(kernels)))]
    for name, kernel in zip(names, kernels, strict=False):
        state[name] = torch.zeros(*state[name].shape[:2], kernel)
    return state


@pytest.mark.parametrize("kernels", [(3, 7), (3, 7, 19), (5, 11, 61)])
def test_convolutions_that_were_not_dilated_are_not_taken_for_others(tmp_path, kernels):
    torch.save({"model_pos": with_kernels(*kernels)}, tmp_path / "dense.bin")
    with pytest.raises(DataError, match=r"dense.bin: .* trained with --dense and widths \d, \d"):
        import_weights(tmp_path / "dense.bin", "videopose3d", tmp_path / "ours.ckpt")


def test_convolutions_over_one_frame_before_others_are_taken(tmp_path):
    torch.save(with_kernels(1, 5, 3), tmp_path / "theirs.bin")
    report = import_weights(tmp_path / "theirs.bin", "videopose3d", tmp_path / "ours.ckpt")
    assert report.net["init_args"]["widths"] == [1, 5, 3]


def test_two_names_that_become_one_are_rejected():
    state = ResidualMLP(34, 48, 8, 1).state_dict()
    state["res_blocks.0.w1.weight"] = torch.zeros(8, 8)
    net = ResidualMLP(34, 48, 8, 1)
    before = checkpoints.weights_digest(net)
    with pytest.raises(DataError, match=r"res_blocks\.0\.w1\.weight and another .* are both"):
        load_published(net, state)
    assert checkpoints.weights_digest(net) == before


def test_module_in_front_is_stripped_however_often_or_named():
    theirs, ours = small_mixste(1), small_mixste(2)
    state = {f"module.module.{name}": value for name, value in theirs.state_dict().items()}
    load_published(ours, state)
    assert torch.equal(ours.head[1].weight, theirs.head[1].weight)
    state["head.1.bias"] = state.pop("module.module.head.1.bias")
    with pytest.raises(DataError, match=r"59 of its 60 names begin with `module\.`"):
        load_published(ours, state)


def test_a_file_of_another_network_is_named(tmp_path):
    path = tmp_path / "theirs.bin"
    for theirs, name in ((PoseFormer(frames=3, dim=8, depth=1), "poseformer"), (HRNet(8), "hrnet")):
        torch.save(theirs.state_dict(), path)
        with pytest.raises(DataError, match=f"names are those of a {name}; take --as {name}"):
            import_weights(path, "mixste", tmp_path / "ours.ckpt")


def test_numbers_that_are_too_large_for_the_network_are_rejected():
    state = {name: value.double() for name, value in small_mixste().state_dict().items()}
    state["head.1.bias"][0] = 1e300
    with pytest.raises(DataError, match=r"head\.1\.bias is not finite in float32"):
        load_published(small_mixste(), state)


def test_negative_variances_are_rejected():
    net = VideoPose3D(widths=(3,), channels=8)
    state = net.state_dict() | {"expand_bn.running_var": torch.tensor([1.0] * 7 + [-1e-3])}
    with pytest.raises(DataError, match=r"expand_bn\.running_var is a variance and negative"):
        load_published(net, state)


def test_other_weights_in_a_file_and_odd_entries_are_named_as_dropped():
    net = small_mixste()
    state = net.state_dict()
    file = {"model_pos": {**state, "args": [1, 2]}, "model": dict(state), "ema": dict(state)}
    assert load_published(net, file | {"epoch": 3}).dropped == ("args", "model", "ema")
    assert load_published(net, {**state, "ema": dict(state)}).dropped == ("ema",)


def test_stages_of_a_cascade_are_to_be_given_one_by_one(tmp_path):
    torch.save([ResidualMLP(34, 48, 8, 1).state_dict()] * 2, tmp_path / "cascade.bin")
    with pytest.raises(DataError, match="of a cascade's stages give one"):
        import_weights(tmp_path / "cascade.bin", "martinez", tmp_path / "ours.ckpt")
    with pytest.raises(UsageError, match="of a cascade take one stage as martinez"):
        import_weights(tmp_path / "cascade.bin", "cascade", tmp_path / "ours.ckpt")


def test_an_import_prints_the_network_as_the_options_of_a_stage(tmp_path, capsys):
    torch.save(VideoPose3D(widths=(3, 5), channels=8).state_dict(), tmp_path / "theirs.bin")
    report = import_weights(tmp_path / "theirs.bin", "videopose3d", tmp_path / "ours.ckpt")
    _, network, note = str(report).splitlines()
    assert "init_args.causal true" in note
    words = ["lift", "test", "-c", "lift/mixste_small", "-c", "data/synthetic"]
    main([*words, *shlex.split(network.removeprefix("network: ")), "--print_config"])
    made = yaml.safe_load(capsys.readouterr().out)["model"]["net"]
    assert made["class_path"] == "pipeline.lift.VideoPose3D"
    assert made["init_args"].items() >= report.net["init_args"].items()


@pytest.mark.parametrize("dim", [12, 16])
def test_assumed_heads_are_named_in_the_report(tmp_path, dim):
    torch.save(MixSTE(frames=3, dim=dim, depth=1, heads=4).state_dict(), tmp_path / "theirs.bin")
    report = import_weights(tmp_path / "theirs.bin", "mixste", tmp_path / "ours.ckpt")
    heads = {12: 4, 16: 8}[dim]
    assert report.net["init_args"]["heads"] == heads
    assert f"{heads} are taken" in str(report)


def volumes(maps):
    """Weights of a ResNet with so many maps, of which the head alone tells anything."""
    with torch.device("meta"):
        net = SAN(50, 1, maps, attention=False)
    return {name: torch.zeros(tensor.shape) for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize(
    ("maps", "skeleton", "found"),
    [
        (1152, "H36M18", (18, 64)),
        (1152, "MPII16", (16, 72)),
        (17, "COCO17", (17, 1)),
        (1024, None, (16, 64)),
    ],
)
def test_joints_and_bins_of_volumes_are_told_apart(tmp_path, maps, skeleton, found):
    torch.save(volumes(maps), tmp_path / "theirs.bin")
    report = import_weights(
        tmp_path / "theirs.bin", "san", tmp_path / "ours.ckpt", skeleton=skeleton
    )
    sizes = report.net["init_args"]
    assert (sizes["joints"], sizes["depth_bins"]) == found


@pytest.mark.parametrize(
    ("maps", "skeleton", "text"),
    [
        (1152, None, r"1,152 maps are 18 joints of 64 bins or 16 joints of 72 bins; .* --skeleton"),
        (17, None, r"17 maps are no joints of 64 or 72 bins; give --skeleton"),
        (100, "H36M17", r"100 maps are no multiple of the 17 joints of H36M17"),
    ],
)
def test_volumes_that_do_not_tell_their_joints_are_rejected(tmp_path, maps, skeleton, text):
    state = {"final_layer.weight": torch.zeros(maps, 256, 1, 1)}
    state |= {f"layer3.{block}.bn1.weight": torch.zeros(1) for block in range(6)}
    torch.save(state, tmp_path / "theirs.bin")
    with pytest.raises(DataError, match=text):
        import_weights(tmp_path / "theirs.bin", "san", tmp_path / "ours.ckpt", skeleton=skeleton)


def imported(tmp_path, net, as_, **options):
    """A checkpoint made of a network's weights, as old files have them: without counters."""
    state = {name: value for name, value in net.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "theirs.pth")
    path = tmp_path / "detector.ckpt"
    return path, import_weights(tmp_path / "theirs.pth", as_, path, **options)


@pytest.mark.parametrize(
    ("joints", "options", "skeleton", "size"),
    [
        (17, {}, "COCO17", (192, 256)),
        (16, {}, "MPII16", (256, 256)),
        (17, {"skeleton": "H36M17", "input_size": (64, 96)}, "H36M17", (64, 96)),
    ],
)
def test_an_imported_2d_network_is_a_detector(tmp_path, joints, options, skeleton, size):
    torch.manual_seed(0)
    theirs = HRNet(8, joints)
    path, report = imported(tmp_path, theirs, "hrnet", **options)
    assert f"finds {skeleton} in crops of {size[0]}x{size[1]}" in str(report)
    detector = load_detector(path)
    expected = HeatmapModule(
        theirs, skeleton=skeleton, input_size=size, published_cells=True, flip_test=True
    ).eval()
    assert detector.settings() == expected.settings()
    images = torch.randint(0, 256, (1, size[1], size[0], 3), dtype=torch.uint8)
    for found, wanted in zip(detector.detect(images), expected.detect(images), strict=True):
        assert torch.equal(found, wanted)


def test_an_imported_network_with_volumes_is_a_detector(tmp_path):
    path, _ = imported(tmp_path, SAN(50, 18, 64, attention=False), "san", skeleton="H36M18")
    settings = load_detector(path).settings()
    assert settings["joints"] == "H36M18"
    assert (settings["input_size"], settings["cell_offset"]) == ([256, 256], 0.0)


def test_a_detector_of_unknown_joints_or_without_head_is_rejected(tmp_path):
    path, report = imported(tmp_path, HRNet(8, 21), "hrnet")
    assert "21 joints do not tell their set" in str(report)
    with pytest.raises(DataError, match="to use it as a detector, import a whole 2D network with"):
        load_detector(path)
    path, _ = imported(tmp_path, HRNet(8, 17), "hrnet", part="backbone")
    with pytest.raises(DataError, match="to use it as a detector, import a whole 2D network with"):
        load_detector(path)
    with pytest.raises(UsageError, match="COCO17: has 17 joints and the network finds 21"):
        imported(tmp_path, HRNet(8, 21), "hrnet", skeleton="COCO17")
    with pytest.raises(UsageError, match="no joint set 'COCO'"):
        imported(tmp_path, HRNet(8, 17), "hrnet", skeleton="COCO")
    with pytest.raises(UsageError, match="are for 2D networks"):
        imported(tmp_path, small_mixste(), "mixste", input_size=(256, 256))


@pytest.mark.parametrize(
    ("names", "maps", "channels"),
    [
        (["conv1", "deconv_layers.0", "final_layer"], 17, "BGR"),
        (["module.conv1", "module.deconv_layers.0", "module.final_layer"], 16, "BGR"),
        (["backbone.conv1", "head.deconv_layers.0", "head.final_layer"], 18 * 64, "RGB"),
        (["backbone.conv1", "head.features.0", "head.features.9"], 18 * 64, "RGB"),
        (["conv1", "deconv_layers.0", "final_layer"], 18 * 64, "RGB"),
        (["conv1", "stage2.0.branches.0.0.conv1", "final_layer"], 17, "RGB"),
        (["conv1", "fc"], 1000, "RGB"),
    ],
    ids=["simple baseline", "parallel", "3DMPPE", "Integral", "SAN", "HRNet", "ImageNet"],
)
def test_each_published_family_has_its_channel_order(names, maps, channels):
    published = {f"{name}.weight": torch.zeros(maps, 3, 1, 1) for name in names}
    weights = published_files.extract_weights(published)
    found = matching.published_input(*matching.rename_weights(weights, "theirs"))
    assert found.channels == channels
    assert found.mean == (0.485, 0.456, 0.406)


def test_lifters_have_no_channel_order(tmp_path):
    _, report = imported(tmp_path, small_mixste(), "mixste")
    assert report.image_input == ""
    with pytest.raises(UsageError, match="--channels is for 2D networks"):
        imported(tmp_path, small_mixste(), "mixste", channels="BGR")


def colours():
    """A crop with more red than green and more green than blue, for HRNet at 64 x 96."""
    torch.manual_seed(1)
    return torch.randint(0, 80, (1, 96, 64, 3)).add(torch.tensor([160, 70, 0])).byte()


def test_an_import_keeps_the_channel_order_it_was_given(tmp_path):
    torch.manual_seed(0)
    options = {"input_size": (64, 96), "skeleton": "COCO17"}
    path, report = imported(tmp_path, HRNet(8, 17), "hrnet", channels="BGR", **options)
    assert "input: BGR, mean 0.485, 0.456, 0.406, deviation 0.229, 0.224, 0.225" in str(report)
    assert "colour" not in str(report)
    bgr = load_detector(path)
    path, report = imported(tmp_path, bgr.net, "hrnet", **options)
    assert "RGB is taken: give --channels if they were trained on the other" in str(report)
    rgb = load_detector(path)
    assert torch.equal(bgr(colours()), rgb(colours().flip(-1)))
    assert not torch.equal(bgr(colours()), rgb(colours()))


@pytest.mark.slow
def test_an_imported_simple_baseline_sees_bgr(tmp_path):
    path, report = imported(tmp_path, SimpleBaseline(50, 17), "simple_baseline")
    assert "input: BGR" in str(report)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(1, 2, 2, 3)
    channels = load_detector(path).normalise(red)[0, :, 0, 0]
    torch.testing.assert_close(channels[2], torch.tensor((1 - 0.406) / 0.225))


@pytest.mark.timeout(120)
def test_detections_of_an_imported_network_reach_a_lifter(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path, _ = imported(tmp_path, HRNet(8, 17), "hrnet", input_size=(32, 32))
    small = tmp_path / "small.yaml"
    small.write_text(
        "data: {source: {class_path: pipeline.mocap.Synthetic, init_args: "
        "{train: 2, val: 1, test: 1, actions: [walk], seconds: 0.2}}}"
    )
    words = ["detect", "-c", str(small), "--detector", str(path), "--accelerator", "cpu"]
    assert main(words) == 0, capsys.readouterr().err
    words = ["lift", "fit", "-c", "lift/mixste_small", "-c", str(small), "--wandb", "off"]
    words += ["--data.detections", str(path), "--trainer.fast_dev_run", "1"]
    assert main([*words, "--data.workers", "0"]) == 0, capsys.readouterr().err


def test_an_imported_lifter_is_no_detector(tmp_path):
    path, _ = imported(tmp_path, small_mixste(), "mixste")
    with pytest.raises(DataError, match="without settings of a run; give it as"):
        checkpoints.load_module(path, (LiftModule,))
