"""The open benchmark: another skeleton by YAML alone, real recordings, bodies, cameras, cache."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fabricate
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from stick_figures import motion, tree

from pipeline.camera import human36m_cameras, project, world_to_camera
from pipeline.cli.configs import find_config, shipped_configs
from pipeline.errors import DataError, UsageError
from pipeline.experiments.benchmark_source import make_source
from pipeline.mocap.bodies import BONES, apply_bone_lengths, sample_bone_lengths
from pipeline.mocap.mapping import read_mapping
from pipeline.mocap.motion_capture import Mocap
from pipeline.mocap.preparation import find_good_frames, read_recording, resample
from pipeline.mocap.recordings import Recording, assign_human36m_subjects
from pipeline.skeleton import H36M17, MPII16
from pipeline.sources import MotionSource

FEW = {"02_01": "val", "09_03": "train", "08_08": "test", "10_03": "test"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HEATLIFT_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def few(tmp_path, shared):
    """Four recordings of the benchmark: their folder, and their lines of the table of splits."""
    root = shared / "data" / "cmu_mocap"
    with (root / "splits.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["sequence"] in FEW]
    table = tmp_path / "few.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return {"root": root, "splits": str(table)}


def read_source(config, root):
    """The data source of a shipped config, with another root."""
    source = yaml.safe_load(find_config(config).read_text())["data"]["source"]
    return make_source(source | {"init_args": source["init_args"] | {"root": str(root)}})


def people(folder):
    """Recordings as npz: a person who strides along, one file and subject each."""
    for i in range(3):
        steps = np.linspace(0, 1 + i, 40)[:, None, None] * [1.0, 0.2, 0]
        positions = fabricate.motion(40) + steps
        np.savez(folder / f"p{i}.npz", positions=positions, fps=50.0, joints=H36M17.joints)
    splits = ("train", "val", "test")
    rows = "".join(f"p{i},s{i},{split}\n" for i, split in enumerate(splits))
    (folder / "splits.csv").write_text("sequence,subject,split\n" + rows)
    return {"root": folder, "splits": str(folder / "splits.csv"), "mapping": "H36M17"}


# another hierarchy: names, parents (children in the order of the file), and what they mean
BIPED = {
    "Bip01": None,
    "Spine": "Bip01",
    "Neck": "Spine",
    "Skull": "Neck",
    "ArmL": "Neck",
    "ElbowL": "ArmL",
    "HandL": "ElbowL",
    "ArmR": "Neck",
    "ElbowR": "ArmR",
    "HandR": "ElbowR",
    "ThighL": "Bip01",
    "CalfL": "ThighL",
    "FootL": "CalfL",
    "ThighR": "Bip01",
    "CalfR": "ThighR",
    "FootR": "CalfR",
}
BIPED_MAPPING = """
skeleton: H36M17
unit: in
up: z
forward: -y
drop_first: 2
accept: [bones, symmetry, proportions, sides, up, speed]  # the angles of the test are random
joints:
  pelvis: Bip01
  right_hip: ThighR
  right_knee: CalfR
  right_ankle: FootR
  left_hip: ThighL
  left_knee: CalfL
  left_ankle: FootL
  spine: Spine
  thorax: Neck
  nose: {midpoint: [Neck, Skull]}
  head: {joint: Skull, offset: [0, 0, 4]}
  left_shoulder: ArmL
  left_elbow: ElbowL
  left_wrist: HandL
  right_shoulder: ArmR
  right_elbow: ElbowR
  right_wrist: HandR
"""


def test_another_skeleton_loads_through_a_mapping_alone(tmp_path):
    rng = np.random.default_rng(3)
    angles = {name: rng.uniform(-60, 60, (7, 3)) for name in BIPED}
    local = {name: rng.uniform(-20, 20, (7, 3)) for name in BIPED}  # inches, instead of the offset
    rows = [np.c_[angles[n][:, :1], local[n], angles[n][:, 1:]] for n in BIPED]
    names = list(BIPED)
    parents = [-1 if p is None else names.index(p) for p in BIPED.values()]
    text = tree(names, parents, np.full((16, 3), 99.0), ["YxyzXZ"] * 16)
    (tmp_path / "dance.bvh").write_text(text + motion(np.concatenate(rows, axis=1), 0.033333))
    (tmp_path / "biped.yaml").write_text(BIPED_MAPPING)
    (tmp_path / "s.csv").write_text("sequence,subject,split,floor_mm\ndance,Ann,test,-100\n")
    found = Mocap(
        tmp_path,
        mapping="biped.yaml",  # both are found beside the data
        splits="s.csv",
        fps=30,
        bodies="recorded",
    )
    assert tmp_path / "s.csv" in found.input_files(["test"])
    found = found.sequences("test")
    assert [s.name for s in found] == ["dance.0", "dance.1", "dance.2", "dance.3"]
    place, turn = {}, {}
    for name, parent in BIPED.items():
        own = Rotation.from_euler("YXZ", angles[name], degrees=True)
        turn[name] = own if parent is None else turn[parent] * own
        place[name] = local[name]
        if parent:
            place[name] = place[parent] + turn[parent].apply(local[name])
    x, y, z = (place["HandL"][2:] * 0.0254).T
    expected = np.stack([-y, x, z + 0.1], axis=-1)
    np.testing.assert_allclose(found[0].joints3d[:, 13], expected, atol=1e-6)
    head = place["Skull"] + turn["Skull"].apply([0, 0, 4])
    np.testing.assert_allclose(found[3].joints3d[:, 10, 0], -head[2:, 1] * 0.0254, atol=1e-6)


def test_the_reference_joints_are_reproduced_to_a_fiftieth_of_a_millimetre(shared):
    root = shared / "data" / "cmu_mocap"
    with (root / "reference_joints.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = np.array([[float(row[f"{axis}_mm"]) for axis in "xyz"] for row in rows])
    joints, fps = read_recording(root / "bvh" / "02" / "02_01.bvh.gz", read_mapping("cmu"))
    assert fps == 120
    frame = int(rows[0]["frame120"]) - 10
    np.testing.assert_allclose(joints[frame] * 1000, expected, atol=0.02)


def test_real_recordings_have_the_frames_and_bad_frames_of_the_table(few):
    mocap = Mocap(**few)
    assert isinstance(mocap, MotionSource)
    found = {s.name: s for split in ("train", "val", "test") for s in mocap.sequences(split)}
    assert len(found) == 4 * len(FEW)
    counts = {name: len(found[f"{name}.0"]) for name in FEW}
    assert counts == {"02_01": 139, "09_03": 50, "08_08": 114, "10_03": 147}
    assert (~found["02_01.3"].valid).sum() == 6
    assert (~found["09_03.0"].valid).sum() == 10
    assert found["08_08.0"].valid is None
    assert [found[f"{name}.0"].group for name in FEW] == ["seen", "", "seen", "unseen"]
    assert found["10_03.2"].action == "soccer"


def test_every_frame_of_a_real_recording_stands_on_the_floor_and_in_the_image(few):
    for sequence in Mocap(**few).sequences("test"):
        feet = sequence.joints3d[:, [3, 6], 2]
        assert -0.05 < np.percentile(feet, 5) < 0.12
        camera = sequence.camera
        pixels = project(world_to_camera(sequence.joints3d.astype(float), camera), camera)
        inside = ((pixels >= 10) & (pixels <= 990)).all(axis=(1, 2))
        assert inside.mean() >= 0.995


def test_sequences_do_not_depend_on_what_was_asked_before(few):
    one, other = Mocap(**few), Mocap(**few)
    other.sequences("train")
    for a, b in zip(one.sequences("test"), other.sequences("test"), strict=True):
        np.testing.assert_array_equal(a.joints3d, b.joints3d)
        np.testing.assert_array_equal(a.camera.rotation, b.camera.rotation)
    changed = Mocap(**few, seed=1).sequences("test")[0]
    assert not np.array_equal(changed.camera.centre, a.camera.centre)


def test_resampling_at_the_same_rate_changes_nothing():
    joints = np.random.default_rng(0).normal(size=(9, 2, 3))
    np.testing.assert_array_equal(resample(joints, 50, 50), joints)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([24, 25, 29.97, 30, 60, 100, 120, 240]))
def test_resampling_a_straight_path_stays_on_it(frames, fps):
    path = np.arange(frames)[:, None, None] * np.array([1.0, -2, 0.5]) / fps
    found = resample(path, fps, 50)
    seconds = np.arange(len(found))[:, None, None] / 50
    np.testing.assert_allclose(found, seconds * [1, -2, 0.5], atol=1e-9)
    assert len(found) == np.floor((frames - 1) / fps * 50 + 1e-6) + 1


def test_a_frame_is_bad_when_the_nearest_file_frame_is():
    # 50 Hz frames lie nearest to file frames 10, 12, 15, 17, 20, 22
    good = find_good_frames(6, 50, 120, 10, [(0, 10), (16, 17), (21, 21)])
    assert good.tolist() == [False, True, True, False, True, True]


def test_a_body_keeps_directions_and_gets_its_own_lengths():
    joints = np.random.default_rng(1).normal(size=(5, 17, 3))
    bones = sample_bone_lengths(0, "07")
    moved = apply_bone_lengths(joints, H36M17, bones)
    for parent, child in H36M17.bones:
        before, after = joints[:, child] - joints[:, parent], moved[:, child] - moved[:, parent]
        length = np.linalg.norm(after, axis=1)
        np.testing.assert_allclose(length, bones[H36M17.joints[child].split("_")[-1]])
        cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / length
        np.testing.assert_allclose(cosine, 1)


def test_the_root_path_grows_as_the_legs_do():
    pose = np.zeros((2, 17, 3))
    pose[:, [2, 5], 2] = -0.4  # thigh 0.4 m, shin 0.5 m
    pose[:, [3, 6], 2] = -0.9
    pose += np.array([[[1.0, 2, 0.9]], [[3, 2, 0.9]]])
    bones = dict.fromkeys(BONES, 0.45)
    np.testing.assert_allclose(apply_bone_lengths(pose, H36M17, bones)[:, 0], pose[:, 0])
    taller = apply_bone_lengths(pose, H36M17, bones | {"knee": 0.54})
    np.testing.assert_allclose(taller[:, 0], pose[:, 0] * 1.1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.text(max_size=4))
def test_bones_lie_in_the_ranges_of_adults(seed, subject):
    bones = sample_bone_lengths(seed, subject)
    assert all(low <= bones[name] <= high for name, (low, high) in BONES.items())
    assert bones == sample_bone_lengths(seed, subject)


def test_positions_without_rotations_are_read_and_cut_into_splits(tmp_path):
    mocap = Mocap(**people(tmp_path), bodies="recorded")
    stored = np.load(tmp_path / "p1.npz")["positions"]
    found = mocap.sequences("val")[0].joints3d
    np.testing.assert_allclose(found[..., :2], stored[..., :2], atol=1e-6)
    np.testing.assert_allclose(np.diff(found[0, :, 2]), np.diff(stored[0, :, 2]), atol=1e-6)


def test_recordings_are_centred_in_the_capture_volume_of_a_human36m_subject(tmp_path):
    mocap = Mocap(**people(tmp_path), cameras="human36m")
    views = mocap.sequences("test")
    assert mocap.human36m_subjects("test") == {"s2": "S9"}
    path = views[0].joints3d[:, 0, :2]
    np.testing.assert_allclose(path.min(axis=0) + path.max(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(views[2].camera.centre, human36m_cameras()["S9"][2].centre)


def test_subjects_are_assigned_so_that_frames_are_even():
    recordings = [Recording(f"r{i}", str(i), "test") for i in range(3)]
    assert assign_human36m_subjects(recordings, {"r0": 5, "r1": 9, "r2": 3}) == {
        "1": "S9",
        "0": "S11",
        "2": "S11",
    }


def test_images_show_the_person_where_the_joints_are(few):
    sequence = Mocap(**few, images=True).sequences("train")[1]
    assert len(sequence.images) == len(sequence.joints3d)
    image = sequence.images.crop(20, np.eye(2, 3) * 0.25, (250, 250))
    assert image.shape == (250, 250, 3)
    assert image.std() > 5


def test_the_second_pass_takes_the_cache_and_a_changed_file_does_not(tmp_path, cache):
    arguments = people(tmp_path)
    first = Mocap(**arguments).sequences("train")[0].joints3d
    made = [path for path in cache.iterdir() if path.name.startswith("mocap-")]
    again = Mocap(**arguments).sequences("train")[0].joints3d
    np.testing.assert_array_equal(first, again)
    assert [p for p in cache.iterdir() if p.name.startswith("mocap-")] == made
    with np.load(tmp_path / "p0.npz") as stored:
        np.savez(tmp_path / "p0.npz", **{**stored, "positions": stored["positions"] + 1})
    changed = Mocap(**arguments).sequences("train")[0].joints3d
    assert not np.array_equal(first, changed)


def test_a_damaged_cache_is_built_again(tmp_path, cache):
    arguments = people(tmp_path)
    first = Mocap(**arguments).sequences("test")[0].joints3d
    array = next(cache.glob("mocap-*/joints.npy"))
    data = bytearray(array.read_bytes())
    data[-100] ^= 1
    array.write_bytes(data)
    np.testing.assert_array_equal(Mocap(**arguments).sequences("test")[0].joints3d, first)


def test_a_converted_set_is_a_root_without_the_recordings(tmp_path, cache):
    arguments = people(tmp_path)
    first = Mocap(**arguments).sequences("test")[2]
    carried = tmp_path / "carried"
    shutil.copytree(next(cache.glob("mocap-*")), carried)
    for file in tmp_path.glob("*.npz"):
        file.unlink()
    found = Mocap(**arguments | {"root": carried}).sequences("test")[2]
    np.testing.assert_array_equal(found.joints3d, first.joints3d)
    with pytest.raises(DataError, match="another version, mapping or frame rate"):
        Mocap(**arguments | {"root": carried}, fps=25).sequences("test")
    (carried / "joints.npy").write_bytes(b"")
    with pytest.raises(DataError, match="convert the recordings again"):
        Mocap(**arguments | {"root": carried}).sequences("test")


@pytest.mark.slow
def test_two_processes_that_convert_at_once_end_with_the_same_set(tmp_path, cache):
    arguments = people(tmp_path)
    code = (
        "import sys; from pipeline.mocap.motion_capture import Mocap\n"
        "s = Mocap(sys.argv[1], splits=sys.argv[2], mapping='H36M17').sequences('test')[0]\n"
        "print(float(s.joints3d.sum()))"
    )
    command = [sys.executable, "-c", code, str(arguments["root"]), arguments["splits"]]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) for _ in range(3)]
    sums = {run.communicate(timeout=100)[0] for run in runs}
    assert len(sums) == 1
    assert len(list(cache.glob("mocap-*/joints.npy"))) == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"fps": None}, "has no array 'fps'"),
        ({"fps": 0.0}, "fps must be one number from 1 to 10000"),
        ({"positions": np.zeros((4, 16, 3))}, "has shape (4, 16, 3), expected (frames, 17, 3)"),
        (
            {"positions": np.full((4, 17, 3), np.nan)},
            "68 positions are not finite, first at frame 0",
        ),
        ({"joints": np.array(["a"] * 17)}, "joints must be a list of distinct names"),
        ({"joints": np.array([f"j{i}" for i in range(17)])}, "has no joint 'pelvis'"),
        ({"joints": np.array(list(H36M17.joints), object)}, "joints"),
    ],
)
def test_a_fault_in_an_npz_file_is_named(tmp_path, arrays, message):
    good = {"positions": np.zeros((4, 17, 3)), "fps": 50, "joints": np.array(H36M17.joints)}
    path = tmp_path / "a.npz"
    np.savez(path, **{k: v for k, v in (good | arrays).items() if v is not None})
    with pytest.raises(DataError) as caught:
        read_recording(path, read_mapping("H36M17"))
    assert str(caught.value).startswith(f"{path}")
    assert message in str(caught.value)


def test_a_point_fixed_to_a_joint_needs_rotations(tmp_path):
    names = [n for p in read_mapping("cmu").points for n in p.sources]
    names = list(dict.fromkeys(names))
    path = tmp_path / "a.npz"
    np.savez(path, positions=np.zeros((20, len(names), 3)), fps=120, joints=names)
    with pytest.raises(DataError, match=r"nose has an offset from head, but .* without rotations"):
        read_recording(path, read_mapping("cmu"))


def test_an_error_about_missing_recordings_names_the_command_that_tells_their_source(tmp_path):
    for root in (None, tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="heatlift data get cmu"):
            Mocap(root).sequences("test")


def test_the_default_root_is_in_the_data_folder(monkeypatch):
    monkeypatch.setenv("HEATLIFT_DATA", "/somewhere")
    assert str(Mocap().folder) == "/somewhere/mocap"


def test_a_recording_that_differs_from_the_release_is_refused(tmp_path, shared):
    root = tmp_path / "bvh"
    root.mkdir()
    for file in (shared / "data" / "cmu_mocap").glob("bvh/*/*.gz"):
        (root / file.name).symlink_to(file)
    (root / "08_03.bvh.gz").unlink()
    shutil.copy(root / "08_02.bvh.gz", root / "08_03.bvh.gz")
    with pytest.raises(DataError, match=r"08_03.bvh.gz: is not the released recording"):
        Mocap(root).sequences("test")


def test_own_recordings_keep_their_bones_and_the_run_prints_it(tmp_path):
    mocap = Mocap(**people(tmp_path))
    with np.load(tmp_path / "p0.npz") as stored:
        thigh = np.linalg.norm(stored["positions"][0, 1] - stored["positions"][0, 2])
    found = mocap.sequences("train")[0].joints3d
    np.testing.assert_allclose(np.linalg.norm(found[:, 1] - found[:, 2], axis=-1), thigh, rtol=1e-5)
    assert "bodies as recorded" in mocap.describe()
    adults = Mocap(**people(tmp_path), bodies="random_adults")
    found = adults.sequences("train")[0].joints3d
    drawn = sample_bone_lengths(0, "s0")["knee"]
    np.testing.assert_allclose(np.linalg.norm(found[:, 1] - found[:, 2], axis=-1), drawn, rtol=1e-5)
    assert "a random adult body for each subject instead of the recorded one" in adults.describe()


@pytest.mark.parametrize(
    "path", sorted(shipped_configs().glob("*/*mocap.yaml")), ids=lambda p: p.stem
)
def test_every_config_of_the_open_benchmark_asks_for_random_adults(path):
    source = yaml.safe_load(path.read_text())["data"]["source"]
    assert source["init_args"]["bodies"] == "random_adults"


def test_options_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UsageError, match="bodies is 'own'; choose recorded or random_adults"):
        Mocap(tmp_path, bodies="own")
    with pytest.raises(UsageError, match="choose virtual or human36m"):
        Mocap(tmp_path, cameras="real")
    with pytest.raises(UsageError, match="fps is 0"):
        Mocap(tmp_path, fps=0)


@pytest.mark.slow
def test_the_whole_benchmark_has_the_frames_that_its_page_states(shared):
    mocap = read_source("data/mocap", shared / "data" / "cmu_mocap")
    rows = {row["split"]: row for row in mocap.summary()}
    assert [rows[s]["recordings"] for s in ("train", "val", "test")] == [75, 15, 39]
    assert [rows[s]["frames"] for s in ("train", "val", "test")] == [28_372, 6_350, 19_768]
    assert [rows[s]["bad"] for s in ("train", "val", "test")] == [537, 82, 75]
    assert rows["test"]["good frames x 4 cameras"] == 78_772
    test = mocap.sequences("test")
    groups = {g: sum(len(s) for s in test if s.group == g) // 4 for g in ("seen", "unseen")}
    assert groups == {"seen": 13_168, "unseen": 6_600}


@pytest.mark.slow
def test_the_mean_training_pose_scores_as_an_independent_script_found(shared):
    mocap = read_source("data/mocap", shared / "data" / "cmu_mocap")
    poses = {}
    for split in ("train", "test"):
        poses[split] = []
        for s in mocap.sequences(split):
            seen = world_to_camera(s.joints3d.astype(float), s.camera)[
                slice(None) if s.valid is None else s.valid
            ]
            poses[split].append(seen - seen[:, :1])
        poses[split] = np.concatenate(poses[split])
    error = 1000 * np.linalg.norm(poses["test"] - poses["train"].mean(axis=0), axis=-1).mean()
    assert error == pytest.approx(214.5, abs=4)  # other draws of bodies and cameras move it by 2


def test_cameras_find_a_body_of_another_joint_set(tmp_path):
    arguments = people(tmp_path)
    table = {name: name for name in MPII16.joints} | {"upper_neck": "thorax", "head_top": "head"}
    table["thorax"] = "{midpoint: [left_shoulder, right_shoulder]}"
    lines = "".join(f"  {target}: {source}\n" for target, source in table.items())
    mapping = tmp_path / "mpii.yaml"
    mapping.write_text("skeleton: MPII16\nunit: m\nup: z\nforward: x\njoints:\n" + lines)
    arguments["mapping"] = str(mapping)
    sequence = Mocap(**arguments, bodies="recorded").sequences("train")[0]
    assert sequence.skeleton is MPII16
    assert 4 < np.linalg.norm(sequence.camera.centre[:2] - sequence.joints3d[0, 6, :2]) < 8
    with pytest.raises(UsageError, match="set bodies: recorded"):
        Mocap(**arguments, bodies="random_adults").sequences("train")
    with pytest.raises(UsageError, match="set images: false"):
        Mocap(**arguments, bodies="recorded", images=True).sequences("train")


def test_a_subject_in_train_and_test_gives_one_warning(tmp_path, caplog):
    settings = people(tmp_path)
    table = Path(settings["splits"])
    table.write_text(table.read_text().replace("p2,s2", "p2,s0"))
    Mocap(**settings).recordings("train")
    (line,) = caplog.messages
    assert "splits.csv: 1 subjects are in train and also in val or test (s0)" in line
    caplog.clear()
    Mocap(**people(tmp_path)).recordings("train")
    assert not caplog.messages
