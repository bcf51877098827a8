"""Every format through the command line: fabricated, validated, trained on, tested on."""

import json
import re

import fabricate
import numpy as np
import pytest
import scipy.io  # noqa: F401  (imported before warnings become errors)
import yaml

from pipeline.__main__ import main
from pipeline.cli.configs import shipped_configs
from pipeline.datasets.human36m import Human36M
from pipeline.lift.sequences import exact_joints2d
from pipeline.skeleton import BODY25, COCO17, H36M17, HALPE26, make_conversion

TWO_STEPS = [
    *("--wandb", "off", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"),
    *("--trainer.limit_train_batches", "2", "--trainer.precision", "32-true"),
    *("--trainer.check_val_every_n_epoch", "1", "--data.workers", "0", "--data.batch_size", "4"),
]
TINY = {
    "HRNet": {"width": 8, "stem": 8, "planes": 8, "blocks": 1, "modules": [1, 1, 1]},
    "SimpleBaseline": {},
    "Martinez": {"width": 16, "blocks": 1},
    "CombinedDeepLearner": {"width": 16},
    "VideoPose3D": {"widths": [3, 3], "channels": 16},
    "PoseFormer": {"frames": 9, "dim": 8, "depth": 1, "heads": 2},
    "MixSTE": {"frames": 9, "dim": 16, "depth": 1, "heads": 2},
}
"""Arguments that make each network small; the others are those of its config."""

FORMATS = {
    "human36m": ("lift", fabricate.human36m, "Human36M"),
    "human36m_mmpose": ("lift", fabricate.human36m_mmpose, "Human36MImages"),
    "motionbert": ("lift", fabricate.motionbert, "MotionBertClips"),
    "p_stmo": ("lift", fabricate.p_stmo, "MpiInf3dhp"),
    "3dhp_mmpose": ("lift", fabricate.mpi_inf_3dhp_mmpose, "MpiInf3dhpImages"),
    "coco": ("heatmap", fabricate.coco, "Coco"),
    "mpii": ("heatmap", fabricate.mpii, "Mpii"),
    "mpii_coco": ("heatmap", fabricate.mpii_coco, "Mpii"),
    "posenet": ("heatmap", fabricate.human36m_posenet, "Human36MImages"),
    "mmpose": ("heatmap", fabricate.human36m_mmpose, "Human36MImages"),
}
PRINTED = {
    "human36m": "protocol 1: train S1, S5, S6, S7, S8, test S9, S11",
    "human36m_mmpose": "protocol 1",
    "motionbert": "not comparable with any paper",
    "p_stmo": "univ_annot3",
    "3dhp_mmpose": "target annot3",
    "coco": "OKS-AP: AP ",
    "mpii": "head boxes of gt_valid.mat",
    "mpii_coco": "no head boxes",
    "posenet": "one frame in 64",
    "mmpose": "one frame in 64",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HEATLIFT_RUN", "")
    monkeypatch.delenv("HEATLIFT_RUN")


@pytest.fixture
def heatlift(tmp_path, capsys):
    """Run a command line, check that it succeeds, and return its output."""

    def run(*words):
        code = main([*map(str, words)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


def small(path, tmp_path):
    """A copy of a config with a network that trains in seconds."""
    config = yaml.safe_load(path.read_text())
    net = config["model"]["net"]
    net = net.get("init_args", {}).get("net", net)  # the lifter inside of Centred
    kept = net.get("init_args", {})
    net["init_args"] = {**kept, **TINY[net["class_path"].rpartition(".")[2]]}
    if path.parent.name == "heatmap":
        config["data"]["input_size"] = [64, 64]
    tiny = tmp_path / f"{path.stem}.yaml"
    tiny.write_text(yaml.safe_dump(config))
    return tiny


def fitted(heatlift, tmp_path, stage, *words):
    """Output of a fit of two steps, with its test at the end."""
    runs = ["--runs", tmp_path / "runs", "--name", "it"]
    printed = heatlift(stage, "fit", *words, *TWO_STEPS, *runs)
    assert "test split of" in printed
    return printed


def trained(heatlift, tmp_path, stage, *words):
    """Output of a test of the checkpoint after a fit of two steps; both have the same numbers."""
    before = fitted(heatlift, tmp_path, stage, *words)
    runs = ["--runs", tmp_path / "runs", "--name", "it"]
    best = tmp_path / "runs" / stage / "it" / "checkpoints" / "best.ckpt"
    tested = heatlift(stage, "test", *words, *TWO_STEPS, *runs, "--ckpt_path", best)
    assert ("pck@0.05 " if stage == "heatmap" else "mean over frames") in tested
    assert numbers(before) == numbers(tested)
    return tested


def numbers(printed):
    """Numbers in the tables and lines of a test, without those that only a fit prints."""
    start = printed.rindex("test split of")
    return re.findall(r"\d+\.\d+", re.split(r"\n  test |[─━┏]", printed[start:])[0])


FAST_FORMATS = ("human36m", "p_stmo", "coco", "mpii")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST_FORMATS else pytest.mark.slow) for n in FORMATS],
)
def test_a_fabricated_set_is_validated_trained_on_and_tested_on(name, heatlift, tmp_path):
    stage, make, source = FORMATS[name]
    folder = make(tmp_path / "set")
    assert ", 0 wrong" in heatlift("data", "validate", folder)
    shipped = "heatmap/hrnet_narrow" if stage == "heatmap" else "lift/mixste_small"
    tiny = small(shipped_configs() / f"{shipped}.yaml", tmp_path)
    data = tmp_path / "data.yaml"
    named = {"class_path": f"pipeline.datasets.{source}", "init_args": {"root": str(folder)}}
    data.write_text(yaml.safe_dump({"data": {"source": named}}))
    words = ["-c", tiny, "-c", data]
    words += ["--data.detections", "exact"] if stage == "lift" else []
    assert PRINTED[name] in trained(heatlift, tmp_path, stage, *words)


@pytest.mark.parametrize("kind", ["amc", pytest.param("amass", marks=pytest.mark.slow)])
def test_a_converted_recording_is_validated_trained_on_and_tested_on(kind, heatlift, tmp_path):
    files = {"amc": fabricate.acclaim, "amass": fabricate.amass}[kind](tmp_path / "raw")
    folder, table = tmp_path / "set", tmp_path / "splits.csv"
    for name in ("walk", "more", "last"):
        printed = heatlift("data", "convert", kind, *files, folder / f"{name}.npz")
    mapping = printed.split()[-1]
    checked = heatlift("data", "validate", folder)
    assert "3 parts, 0 wrong" in checked
    assert f"mapping {mapping}, height 1." in checked
    table.write_text("sequence,subject,split\nwalk,Ann,train\nmore,Bob,val\nlast,Eve,test\n")
    words = ["-c", small(shipped_configs() / "lift" / "mixste_small.yaml", tmp_path)]
    words += ["-c", "data/mocap", "--data.detections", "exact"]
    init = {"root": folder, "mapping": mapping, "splits": table}
    words += [w for k, v in init.items() for w in (f"--data.source.init_args.{k}", v)]
    assert f"mapping {mapping}" in trained(heatlift, tmp_path, "lift", *words)


QUICK = ("martinez_h36m_cpn", "mixste_h36m_cpn", "mixste_3dhp", "hrnet_w32_coco", "hrnet_w32_mpii")
"""Configs that `make test` trains; `make test-all` trains all."""


def configs(*patterns):
    found = [path for pattern in patterns for path in sorted(shipped_configs().glob(pattern))]
    cases = [
        pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem)
        for path in found
    ]
    return pytest.mark.parametrize("path", cases)


@configs("lift/*h36m*.yaml")
def test_lifters_of_the_papers_train_on_human36m(path, heatlift, tmp_path):
    folder = fabricate.human36m(tmp_path / "set", ("S1", "S9"))
    words = ["-c", small(path, tmp_path), "--data.source.init_args.root", folder]
    printed = fitted(heatlift, tmp_path, "lift", *words)
    assert "2D cpn_ft_h36m_dbb; 17 joints, root-relative, mm; root counted" in printed


@configs("lift/*3dhp*.yaml")
def test_lifters_of_the_papers_train_on_mpi_inf_3dhp(path, heatlift, tmp_path):
    univ = "univ" in path.stem
    folder = (fabricate.p_stmo if univ else fabricate.mpi_inf_3dhp_mmpose)(tmp_path / "set")
    words = ["-c", small(path, tmp_path), "--data.source.init_args.root", folder]
    printed = fitted(heatlift, tmp_path, "lift", *words)
    assert f"target {'univ_' if univ else ''}annot3" in printed
    assert "3DPCK@150mm" in printed
    assert "14 joints, errors strictly below" in printed


@configs("heatmap/*coco*.yaml", "heatmap/*mpii*.yaml")
def test_detectors_of_the_papers_train_on_their_photographs(path, heatlift, tmp_path):
    coco = "coco" in path.stem
    folder = (fabricate.coco if coco else fabricate.mpii)(tmp_path / "set")
    words = ["-c", small(path, tmp_path), "--data.source.init_args.root", folder]
    words += ["--data.source.init_args.boxes", "person_detections.json"] if coco else []
    printed = fitted(heatlift, tmp_path, "heatmap", *words)
    assert ("boxes of person_detections.json" if coco else "PCKh@0.5: head") in printed


def converted(sequence, skeleton):
    """Exact 2D of a sequence in a detector's joints: x, y, score, (T, J, 3); 0 where unknown."""
    joints2d = make_conversion(H36M17, skeleton, allow_missing=True).joints(
        exact_joints2d(sequence)
    )
    score = np.isfinite(joints2d[..., :1]) * 0.9
    return np.concatenate([np.nan_to_num(joints2d), score], axis=-1)


def alphapose(place, people, skeleton):
    records = [
        {"image_id": f"{frame}.jpg", "keypoints": person.ravel().tolist(), "score": 2.5}
        for frame, person in enumerate(people)
    ]
    place.with_name(f"{place.name}.json").write_text(json.dumps(records))


def mmpose(place, people, skeleton):
    about = {"keypoint_id2name": {str(j): name for j, name in enumerate(skeleton.joints)}}
    frames = rtmpose_frames(people)
    document = {"meta_info": about, "instance_info": frames}
    place.with_name(f"{place.name}.json").write_text(json.dumps(document))


def rtmpose(place, people, skeleton):
    place.with_name(f"{place.name}.json").write_text(json.dumps(rtmpose_frames(people)))


def rtmpose_frames(people):
    return [
        {
            "frame_id": frame + 1,
            "instances": [
                {
                    "keypoints": person[:, :2].tolist(),
                    "keypoint_scores": person[:, 2].tolist(),
                }
            ],
        }
        for frame, person in enumerate(people)
    ]


def openpose(place, people, skeleton):
    place.mkdir()
    for frame, person in enumerate(people):
        document = {"people": [{"pose_keypoints_2d": person.ravel().tolist()}]}
        (place / f"video_{frame:012d}_keypoints.json").write_text(json.dumps(document))


TOOL_FORMATS = {
    "alphapose-coco17": (alphapose, COCO17, "without head"),
    "alphapose-halpe26": (alphapose, HALPE26, "17 joints"),
    "openpose-body25": (openpose, BODY25, "without head"),
    "mmpose-h36m17": (mmpose, H36M17, "17 joints"),
    "mmpose-coco17": (mmpose, COCO17, "without head"),
    "rtmpose-halpe26": (rtmpose, HALPE26, "17 joints"),
}


def fit_on_detections(heatlift, tmp_path, folder, detections):
    """Output of the test after a fit of two steps on detections."""
    words = ["-c", small(shipped_configs() / "lift" / "mixste_small.yaml", tmp_path)]
    words += ["-c", "data/human36m", "--data.source.init_args.root", folder]
    runs = ["--runs", tmp_path / "runs", "--name", "it", "--data.detections", detections]
    printed = heatlift("lift", "fit", *words, *TWO_STEPS, *runs)
    assert re.search(r"  detections .*: test split: covers 100 % .* px from the projected", printed)
    return printed[printed.index("test split of") :]


@pytest.mark.parametrize(
    "tool_format",
    [
        pytest.param(name, marks=pytest.mark.slow if number % 4 else ())
        for number, name in enumerate(TOOL_FORMATS)
    ],
)
def test_detections_of_other_tools_are_lifted(tool_format, heatlift, tmp_path):
    write, skeleton, printed = TOOL_FORMATS[tool_format]
    folder = fabricate.human36m(tmp_path / "set", ("S1", "S9"), ("Walking 1",))
    source = Human36M(str(folder))
    for sequence in [*source.sequences("train"), *source.sequences("test")]:
        place = tmp_path / "found" / sequence.name
        place.parent.mkdir(parents=True, exist_ok=True)
        write(place, converted(sequence, skeleton), skeleton)
    assert printed in fit_on_detections(heatlift, tmp_path, folder, tmp_path / "found")


def test_detections_of_other_tools_are_validated(heatlift, tmp_path, capsys):
    folder = fabricate.human36m(tmp_path / "set", ("S1", "S9"), ("Walking 1",))
    for sequence in Human36M(str(folder)).sequences("test"):
        place = tmp_path / "found" / sequence.name
        place.parent.mkdir(parents=True, exist_ok=True)
        alphapose(place, converted(sequence, COCO17), COCO17)
    words = ("data", "validate", folder, "--detections", tmp_path / "found")
    printed = heatlift(*words, "--split", "test")
    assert "test split: 4 videos, COCO17, 2D 0.00 px from projected 3D (median), covers" in printed
    assert "4 files, numbered: 4 from 0; 0 frames have nobody" in printed
    assert main([*map(str, words)]) == 4
    assert "train split: not read -- WRONG: " in capsys.readouterr().out


@pytest.mark.slow
def test_videopose3ds_archives_in_another_folder_are_lifted(heatlift, tmp_path):
    folder = fabricate.human36m(tmp_path / "set", ("S1", "S9"), ("Walking 1",))
    moved = tmp_path / "found.npz"
    (folder / "data_2d_h36m_cpn_ft_h36m_dbb.npz").rename(moved)
    assert f"2D {moved}; 17 joints" in fit_on_detections(heatlift, tmp_path, folder, moved)


@pytest.mark.slow
def test_evaluated_joints_and_overlaps_change_the_number_and_are_printed(heatlift, tmp_path):
    folder = fabricate.human36m(tmp_path / "set", ("S1", "S9"), ("Walking 1",))
    words = ["-c", small(shipped_configs() / "lift" / "mixste_small.yaml", tmp_path)]
    words += ["-c", "data/human36m", "--data.source.init_args.root", folder]
    words += ["--data.detections", "exact"]
    before = fitted(heatlift, tmp_path, "lift", *words)
    best = tmp_path / "runs" / "lift" / "it" / "checkpoints" / "best.ckpt"
    settings = [
        "--model.evaluated",
        16,
        "--model.root_evaluated",
        "false",
        "--model.overlap",
        "mixste",
    ]
    words += ["--runs", tmp_path / "runs", *TWO_STEPS]
    after = heatlift("lift", "test", *words, *settings, "--ckpt_path", best)
    assert "17 joints, root-relative, mm; root counted; re-rooted; flip test on" in before
    assert "15 joints, root-relative, mm; root not counted; re-rooted; flip test on" in after
    assert "every valid frame; frames and padding of all windows" in after
    assert counted(before) == 4 * 12
    assert counted(after) == 4 * (12 + 6)  # windows of 9: the second shares 6 with the first
    assert numbers(before) != numbers(after)


def counted(printed):
    """Number of frames that a table is a mean over."""
    return int(re.search(r"mean over frames +(\d+)", printed)[1])
