"""`heatlift data`: its output, the files it writes, and one line for each bad input."""

import gzip
import re
from pathlib import Path

import fabricate
import numpy as np
import pytest
import scipy.io  # noqa: F401  (imported before warnings become errors)

from pipeline.__main__ import main
from pipeline.datasets.body_checks import check_sequence
from pipeline.datasets.human36m import Human36M
from pipeline.datasets.videopose3d import read_videopose3d
from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.mocap.mapping import SHIPPED
from pipeline.mocap.motion_capture import Mocap
from pipeline.skeleton import H36M17


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(capsys):
    """Run `heatlift data ARGUMENTS`; return the exit code, its output and its errors."""

    def run(*arguments):
        code = main(["data", *map(str, arguments)])
        printed = capsys.readouterr()
        assert code == 0 or printed.err.count("\n") == 1, printed.err
        return code, printed.out, printed.err

    return run


def test_ls_lists_the_data_sets_of_a_folder_and_its_subfolders(data, tmp_path):
    fabricate.mpii(tmp_path / "mpii")
    fabricate.p_stmo(tmp_path / "3dhp")
    code, printed, _ = data("ls", tmp_path)
    assert code == 0
    assert "univ_annot3" in printed.splitlines()[0]
    assert "MPII16" in printed.splitlines()[1]


def test_validate_prints_every_part_and_ends_with_4_where_one_is_wrong(data, tmp_path):
    folder = fabricate.human36m(tmp_path / "h36m")
    code, printed, _ = data("validate", folder)
    assert code == 0
    assert printed.endswith("65 parts, 0 wrong\n")
    content = Npz(folder / "data_3d_h36m.npz").objects("positions_3d")
    content["S1"]["Sitting 1"] = content["S1"]["Sitting 1"] * np.float32([-1, 1, 1])
    np.savez(folder / "data_3d_h36m.npz", positions_3d=fabricate.boxed(content))
    code, printed, error = data("validate", folder)
    assert code == 4
    assert "left and right are swapped" in printed
    assert "4 of 65 parts are wrong" in error


def test_skip_bad_leaves_out_damaged_photographs_and_names_them(data, tmp_path):
    folder = fabricate.coco(tmp_path / "coco")
    cut = folder / "train2017" / "000000000008.jpg"
    cut.write_bytes(cut.read_bytes()[:100])
    code, _, error = data("validate", folder)
    assert code == 4
    for arguments in (["--skip-bad"], ["--skip-bad", "1"]):
        code, printed, _ = data("validate", folder, *arguments)
        assert code == 0
        assert f"skipped {cut}: ends before its end marker" in printed
        assert "3 people" in printed
        assert printed.endswith("0 wrong, 1 skipped\n")
    (folder / "val2017" / "000000000007.jpg").write_bytes(b"")
    code, _, error = data("validate", "--skip_bad=1", folder)
    assert code == 4
    assert "000000000007.jpg: is empty" in error


def test_skip_bad_leaves_out_damaged_archives(data, tmp_path):
    folder = fabricate.human36m(tmp_path / "h36m")
    (folder / "data_2d_h36m_other.npz").write_bytes(b"PK")
    code, _, error = data("validate", folder)
    assert code == 4
    assert "data_2d_h36m_other.npz" in error
    code, printed, _ = data("validate", folder, "--skip-bad", "2")
    assert code == 0
    assert "65 parts, 0 wrong, 1 skipped" in printed
    assert "data_2d_h36m_other.npz" in printed


def test_parts_left_out_with_a_damaged_file_are_named(data, tmp_path):
    folder = fabricate.p_stmo(tmp_path / "3dhp")
    (folder / "data_train_3dhp.npz").write_bytes(b"PK")
    code, printed, _ = data("validate", folder, "--skip-bad")
    assert code == 0
    assert "(left out: the train split)" in printed
    (folder / "data_test_3dhp.npz").write_bytes(b"PK")
    code, _, error = data("validate", folder, "--skip-bad")
    assert code == 4  # nothing is left
    assert "data_train_3dhp.npz" in error


def test_a_damaged_image_of_a_video_is_skipped_or_wrong(data, tmp_path):
    folder = fabricate.mpi_inf_3dhp_mmpose(tmp_path / "3dhp")
    (folder / "images" / "TS1_000001.jpg").write_bytes(b"")
    code, printed, _ = data("validate", folder)
    assert code == 4
    assert "TS1_000001.jpg: is empty" in printed
    code, printed, _ = data("validate", folder, "--skip-bad", "1")
    assert code == 0
    assert "(left out: the images of TS1)" in printed


def test_an_archive_without_objects_has_the_same_content(data, tmp_path):
    old = fabricate.human36m(tmp_path / "old")
    for name in ("data_3d_h36m.npz", "data_2d_h36m_cpn_ft_h36m_dbb.npz"):
        assert data("convert", "npz", old / name, tmp_path / "new" / name)[0] == 0
        with np.load(tmp_path / "new" / name, allow_pickle=False) as plain:
            assert all(plain[member].dtype != object for member in plain)
    before, after = (Human36M(str(tmp_path / name)) for name in ("old", "new"))
    for one, other in zip(before.sequences("test"), after.sequences("test"), strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.joints3d, other.joints3d)
    detected = "data_2d_h36m_cpn_ft_h36m_dbb.npz"
    one, other = (read_videopose3d(tmp_path / name / detected) for name in ("old", "new"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].joints2d, other[name].joints2d)


def sequences_of(folder, mapping):
    """The sequences of the one recording in a folder."""
    (folder / "splits.csv").write_text("sequence,subject,split\nwalk,1,train\n")
    source = Mocap(folder, mapping=mapping, splits=str(folder / "splits.csv"))
    return source.sequences("train")


@pytest.mark.parametrize("kind", ["amc", "amass"])
def test_a_converted_recording_is_a_person_for_the_motion_capture_source(data, tmp_path, kind):
    files = {"amc": fabricate.acclaim, "amass": fabricate.amass}[kind](tmp_path / "raw")
    out = tmp_path / "set" / "walk.npz"
    code, printed, error = data("convert", kind, *files, out)
    assert code == 0, error
    mapping = printed.split()[-1]
    sequences = sequences_of(out.parent, mapping)
    assert len(sequences) == 4
    assert sequences[0].fps == 50
    found = check_sequence(sequences[0])
    assert found.faults == (), found.line()


def test_exported_archives_are_read_back(data, tmp_path, shared):
    table = tmp_path / "few.csv"
    table.write_text("sequence,subject,split,kind\n09_12,09,train,navigate\n10_03,10,test,soccer\n")
    arguments = ["--data.source.init_args.root", shared / "data" / "cmu_mocap" / "bvh"]
    arguments += ["--data.source.init_args.splits", table]
    code, printed, error = data(
        "export",
        "--format",
        "videopose3d",
        "-c",
        "data/mocap",
        *arguments,
        "--output",
        tmp_path / "out",
    )
    assert code == 0, error
    assert len(printed.splitlines()) == 2
    read = Human36M(str(tmp_path / "out"))
    assert {s.subject for s in read.sequences("train")} == {"S1"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ls", "nowhere"], 4, "nowhere: is not a folder"),
        (["validate", "."], 4, "no known layout"),
        (["validate"], 2, "folder"),
        (["lss"], 2, "lss"),
        (["validate", ".", "--skip-bad", "-1"], 2, "skip_bad"),
        (["convert", "npz", "nowhere.npz", "new.npz"], 4, "nowhere.npz: not found"),
        (["convert", "npz", "nowhere.npz", "new.txt"], 2, "is not an npz file"),
        (["convert", "amc", "a.asf", "a.amc", "new.npz"], 4, "a.asf: not found"),
        (["convert", "amass", "a.npz", "b.npz", "new.npz"], 4, "a.npz: not found"),
        (["export"], 2, "-c data/mocap"),
        (
            ["export", "-c", "data/synthetic"],
            2,
            "--source: is Synthetic; videopose3d needs motion capture",
        ),
        (["export", "--format", "matlab", "-c", "data/mocap"], 2, "matlab"),
        (["get", "amass"], 2, "amass"),
    ],
)
def test_bad_input_is_one_line(data, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    ended, _, error = data(*arguments)
    assert (ended, message in error) == (code, True), error


def test_get_prints_the_origin_of_recordings_and_what_is_missing(data, tmp_path):
    code, printed, _ = data("get", "cmu", "--root", tmp_path)
    assert code == 0
    assert "mocap.cs.cmu.edu" in printed
    assert "0 of 142 recordings" in printed


def test_get_raises_an_error_for_recordings_other_than_the_released_ones(data, tmp_path):
    (tmp_path / "09_12.bvh").write_text("HIERARCHY")
    code, _, error = data("get", "cmu", "--root", tmp_path)
    assert code == 4
    assert "not the released ones" in error


CMU = Path("data/cmu_mocap/bvh")


def own_set(shared, folder, **changes):
    """Two real recordings under other names, and their mapping with some lines replaced."""
    folder.mkdir()
    (folder / "walk.BVH.gz").write_bytes((shared / CMU / "02" / "02_01.bvh.gz").read_bytes())
    (folder / "kick.bvh.gz").write_bytes((shared / CMU / "10" / "10_03.bvh.gz").read_bytes())
    text = SHIPPED["cmu"].read_text()
    for old, new in changes.items():
        text = text.replace(f"{old}: {new[0]}", f"{old}: {new[1]}")
    (folder / "m.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": ("cm", "m")}, "`unit` is m; with unit: cm it is 1.5"),
        ({"up": ("y", "x")}, "towards y of the files in 100 %; set up: y"),
        ({"left_knee": ("lShin", "lFoot")}, "left_knee and left_ankle are at the same place"),
        ({"left_wrist": ("lHand", "rHand")}, "left_wrist and right_wrist are at the same place"),
    ],
)
def test_a_wrong_mapping_ends_validate_and_every_reading(data, tmp_path, shared, change, message):
    folder = own_set(shared, tmp_path / "own", **change)
    image = tmp_path / "a.png"
    code, printed, _ = data("validate", folder, "--mapping", folder / "m.yaml", "--image", image)
    assert (code, image.is_file()) == (4, True)
    assert message in printed
    (folder / "splits.csv").write_text("sequence,subject,split\nwalk,1,train\nkick,1,train\n")
    source = Mocap(folder, mapping=str(folder / "m.yaml"), splits=str(folder / "splits.csv"))
    with pytest.raises(DataError, match="these are no people") as caught:
        source.sequences("train")
    assert message in str(caught.value)


def test_a_right_mapping_is_printed_with_its_facts(data, tmp_path, shared, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_set(shared, tmp_path / "own")
    code, printed, error = data("validate", "own", "--mapping", "own/m.yaml")
    assert code == 0, error
    assert (tmp_path / "m_frames.png").is_file()
    assert "walk: 334 frames, 120 Hz, height 1.54 m, left hip on the left in 100 %" in printed
    assert "mapping own/m.yaml: 2 recordings, 687 frames" in printed


def test_recordings_that_are_not_cmus_lead_to_a_mapping(data, tmp_path, shared):
    folder = own_set(shared, tmp_path / "own")
    code, _, error = data("validate", folder)
    assert code == 4
    assert "2 recordings" in error
    assert f"`heatlift data mapping {folder}` proposes one" in error
    code, printed, error = data("mapping", folder)
    assert (code, printed.splitlines()[-1]) == (0, "# The shipped mapping fits: write mapping: cmu")
    assert f"Next: heatlift data validate {folder} --mapping cmu" in error
    with pytest.raises(DataError, match=r"has none of the 129 recordings .*, but kick, walk;"):
        Mocap(folder).sequences("train")


def test_some_of_cmus_recordings_are_checked_and_the_others_are_not_asked_for(
    data, tmp_path, shared
):
    for name in ("02/02_01", "10/10_03"):
        (tmp_path / Path(name).name).with_suffix(".bvh.gz").write_bytes(
            (shared / CMU / f"{name}.bvh.gz").read_bytes()
        )
    code, printed, error = data("validate", tmp_path)
    assert code == 0, error
    assert "02_01: 334 frames, 120 Hz, mapping cmu, height 1.54 m" in printed
    assert (
        "127 of the benchmark's 129 recordings are missing -- CHECK: to train on these" in printed
    )
    code, printed, error = data(
        "validate", tmp_path, "--mapping", "cmu", "--image", tmp_path / "a.png"
    )
    assert (code, "mapping cmu: 2 recordings" in printed) == (0, True), error


def test_a_recording_with_the_name_of_one_of_cmus_leads_to_a_mapping(data, tmp_path, shared):
    text = gzip.decompress((shared / CMU / "02" / "02_01.bvh.gz").read_bytes())
    (tmp_path / "01_01.bvh").write_bytes(text.replace(b"lShin", b"Shank.L"))
    code, _, error = data("validate", tmp_path)
    assert code == 4
    assert "which cmu names; `heatlift data mapping FOLDER` proposes another mapping" in error


def test_one_frame_a_second_is_an_error_until_the_mapping_states_the_rate(data, tmp_path):
    positions = fabricate.motion(40)
    np.savez(tmp_path / "walk.npz", positions=positions, joints=H36M17.joints, fps=1.0)
    code, _, error = data(
        "validate", tmp_path, "--mapping", "H36M17", "--image", tmp_path / "a.png"
    )
    assert code == 4
    assert "has 1 frames per second; below 10 the motion between two frames is lost" in error
    lines = "".join(f"  {name}: {name}\n" for name in H36M17.joints)
    (tmp_path / "m.yaml").write_text(
        f"skeleton: H36M17\nunit: m\nup: z\nforward: x\nrecorded_fps: 25\njoints:\n{lines}"
    )
    sequence = sequences_of(tmp_path, str(tmp_path / "m.yaml"))[0]
    assert len(sequence) == 79  # 39 steps at 25 Hz, resampled to 50 Hz


def test_one_damaged_recording_does_not_hide_the_others(tmp_path, capsys):
    for name in ("b", "c"):
        positions = fabricate.motion(20)
        np.savez(tmp_path / f"{name}.npz", positions=positions, fps=50.0, joints=H36M17.joints)
    (tmp_path / "a.npz").write_bytes(b"PK, but nothing more")
    assert main(["data", "ls", str(tmp_path)]) == 0
    line = capsys.readouterr().out
    assert "b.npz has 20 frames at 50 Hz" in line
    assert "cannot be read: " in line
    assert "a.npz: is damaged" in line


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (
            ["ls", "."],
            r"has no known layout; `heatlift docs data` has .* `heatlift docs own_data` those",
        ),
        (["mapping", "file.bvh"], "is a file; name the folder of your recordings"),
        (["mapping", "missing"], "not found; name the folder of your recordings"),
        (["validate", ".", "--mapping", "own.yaml"], "no such mapping; .* data mapping FOLDER"),
    ],
)
def test_wrong_folders_and_mappings_give_short_lines_that_help(
    command, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.bvh").write_text("HIERARCHY")
    if command[0] == "ls":
        (tmp_path / "file.bvh").unlink()
    assert main(["data", *command]) == 4
    line = capsys.readouterr().err
    assert re.search(reason, line), line
    assert len(line) < 250
