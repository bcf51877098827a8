import csv
import json

import numpy as np
import pytest

from pipeline.errors import DataError, UsageError
from pipeline.export.even import even_motion
from pipeline.export.motion import FILLED, MISSING, SEEN, WRITERS, Motion, PersonMotion
from pipeline.export.options import FORMATS
from pipeline.skeleton import H36M17, Skeleton


def made_up_motion(people=2, frames=4, skeleton=H36M17, **facts):
    generator = np.random.default_rng(8)
    J = len(skeleton)

    def person(number):
        parts = {
            "joints3d": generator.normal(size=(frames, J, 3)),
            "root": generator.normal(size=(frames, 3)),
            "joints2d": generator.normal(size=(frames, J, 2)),
            "score": generator.uniform(size=(frames, J)),
        }
        floats = {name: part.astype(np.float32) for name, part in parts.items()}
        floats["joints3d"][1] = np.nan
        status = np.array([SEEN, MISSING, FILLED, SEEN], np.uint8)
        return PersonMotion("AB"[number], **floats, status=status, height=1.5 + number)

    return Motion(
        tuple(person(number) for number in range(people)),
        skeleton,
        np.array([0.0, 0.04, 0.1, 0.12]),
        25.5,
        (640, 480),
        512.25,
        (319.5, 239.5),
        "world",
        np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
        np.array([0.0, 0.25, 1.5]),
        {"source": {"name": "ü ö.mp4"}, "assumptions": ["a", "b"], **facts},
    )


@pytest.mark.parametrize("people", [0, 1, 2])
@pytest.mark.parametrize(
    "skeleton", [H36M17, Skeleton("own", ("root", "left_a", "right_a"), (-1, 0, 0))]
)
def test_a_file_has_the_motion_without_loss(tmp_path, people, skeleton):
    motion = made_up_motion(people, skeleton=skeleton)
    motion.save(tmp_path / "motion.npz")
    read = Motion.load(tmp_path / "motion.npz")
    assert read.skeleton == skeleton
    assert (read.fps, read.size, read.focal, read.principal, read.frame) == (
        motion.fps, motion.size, motion.focal, motion.principal, motion.frame,
    )  # fmt: skip
    assert read.facts == motion.facts
    for name in ("times", "camera_rotation", "camera_centre"):
        assert getattr(read, name).tobytes() == getattr(motion, name).tobytes()
    for a, b in zip(read.people, motion.people, strict=True):
        assert (a.id, a.height) == (b.id, b.height)
        for name in ("joints3d", "root", "joints2d", "score", "status"):
            assert getattr(a, name).dtype == getattr(b, name).dtype
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


def test_a_file_holds_no_pickle_and_explains_itself(tmp_path):
    made_up_motion().save(tmp_path / "motion.npz")
    with np.load(tmp_path / "motion.npz", allow_pickle=False) as file:
        content = {name: file[name] for name in file.files}
    assert str(content["unit"]) == "m"
    assert "z up" in str(content["axes"])
    assert content["joints"].tolist() == list(H36M17.joints)
    assert content["people"].tolist() == ["A", "B"]


def test_spans_and_people():
    motion = made_up_motion()
    assert motion.person("B").spans == [(0, 0), (2, 3)]
    assert motion.person("B").height == 2.5
    with pytest.raises(UsageError, match="there is A, B"):
        motion.person("C")


def test_positions_are_joints_plus_root():
    person = made_up_motion().people[0]
    assert person.positions[2, 5] == pytest.approx(person.joints3d[2, 5] + person.root[2])


def test_another_file_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", joints3d=np.zeros(3))
    with pytest.raises(DataError, match="is no motion"):
        Motion.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heatlift_motion", np.array(99)),
        ("score", np.zeros((2, 4, 16), "f4")),
        ("facts", np.array("[1")),
        ("frame", np.array("moon")),
        ("people", np.array(["A", "A"])),
        ("root", None),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, value):
    made_up_motion().save(tmp_path / "motion.npz")
    with np.load(tmp_path / "motion.npz") as file:
        content = {key: file[key] for key in file.files if key != name}
    if value is not None:
        content[name] = value
    np.savez(tmp_path / "broken.npz", **content)
    with pytest.raises(DataError, match=r"broken\.npz: (is damaged|has format 99)"):
        Motion.load(tmp_path / "broken.npz")


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"\.xyz"):
        made_up_motion().save(tmp_path / "motion.xyz")
    assert not any(tmp_path.iterdir())


def test_arrays_that_do_not_fit_are_an_error():
    still = np.zeros((2, 17, 3), np.float32)
    parts = (still, still[:, 0], still[..., :2], still[:1, :, 0], np.ones(2, np.uint8))
    person = PersonMotion("A", *parts, 1.7)
    with pytest.raises(ValueError, match="score is"):
        Motion((person,), H36M17, np.arange(2.0), 1.0, (8, 8), 9.0, (4, 4))


def test_json_has_the_numbers_of_the_motion_and_null_where_they_are_missing(tmp_path):
    motion = made_up_motion()
    motion.save(tmp_path / "motion.json")
    content = json.loads((tmp_path / "motion.json").read_text())
    first = content["people"][0]
    assert (content["unit"], content["fps"], content["frame"]) == ("m", 25.5, "world")
    assert content["time"] == motion.times.tolist()
    assert first["joints3d"][1][3] == [None] * 3
    assert first["joints3d"][2][5] == pytest.approx(motion.people[0].joints3d[2, 5], abs=1e-5)
    assert first["status"] == ["seen", "missing", "filled", "seen"]
    assert content["facts"] == motion.facts


def test_csv_has_a_row_for_each_frame_of_a_person_with_positions(tmp_path):
    motion = made_up_motion()
    motion.save(tmp_path / "motion.csv")
    with (tmp_path / "motion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["person"], row["frame"]) for row in rows] == [
        (person, frame) for person in "AB" for frame in ("0", "2", "3")
    ]
    wrist = H36M17.index("left_wrist")
    found = [float(rows[4][f"left_wrist_{axis}"]) for axis in "xyz"]
    assert found == pytest.approx(motion.people[1].positions[2, wrist], abs=1e-5)
    assert rows[4]["time"] == "0.1"


def test_a_motion_without_people_is_written_in_every_format(tmp_path):
    for name in ("motion.npz", "motion.json", "motion.csv"):
        made_up_motion(people=0).save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0


def test_trc_is_what_opensim_reads(tmp_path):
    motion = made_up_motion(people=1)
    assert motion.save(tmp_path / "motion.trc") == [tmp_path / "motion.trc"]
    lines = (tmp_path / "motion.trc").read_text().split("\n")
    header = dict(zip(lines[1].split("\t"), lines[2].split("\t"), strict=True))
    assert (header["Units"], header["NumFrames"], header["NumMarkers"]) == ("m", "4", "17")
    assert float(header["DataRate"]) == 25.0  # 4 frames at uneven times, in steps of 0.04 s
    labels = lines[3].split("\t")
    assert labels[:2] == ["Frame#", "Time"]
    assert [name for name in labels[2:] if name] == list(H36M17.joints)
    assert lines[4].split("\t")[2:5] == ["X1", "Y1", "Z1"]
    assert lines[5] == ""
    assert "nan" not in "".join(lines).lower()
    assert {len(line.split("\t")) for line in lines[6:10]} == {2 + 3 * 17}
    x, y, z = (float(cell) for cell in lines[6].split("\t")[2:5])
    assert (z, x, y) == pytest.approx(motion.people[0].positions[0, 0], abs=1e-5)  # world: z up


def test_trc_of_the_camera_frame_has_the_head_above_the_feet(tmp_path):
    still = np.zeros((2, 17, 3), np.float32)
    still[:, H36M17.index("head"), 1] = -0.7  # camera: y down
    parts = (still, still[:, 0] + (0.1, 0.2, 4), still[..., :2], still[..., 0])
    person = PersonMotion("A", *(p.astype(np.float32) for p in parts), np.ones(2, np.uint8), 1.7)
    motion = Motion((person,), H36M17, np.arange(2) / 25, 25.0, (8, 8), 9.0, (4, 4))
    motion.save(tmp_path / "motion.trc")
    row = (tmp_path / "motion.trc").read_text().split("\n")[6].split("\t")
    head = 2 + 3 * H36M17.index("head")
    assert [float(cell) for cell in row[2:5]] == pytest.approx([4, -0.2, 0.1])
    assert float(row[head + 1]) == pytest.approx(0.5)


def test_every_person_gets_a_trc_file_and_uneven_times_become_even(tmp_path):
    motion = made_up_motion(people=2)
    files = motion.save(tmp_path / "motion.trc")
    assert [file.name for file in files] == ["motion_A.trc", "motion_B.trc"]
    rows = [line.split("\t") for line in files[0].read_text().split("\n")[6:10]]
    assert [float(row[1]) for row in rows] == pytest.approx([0, 0.04, 0.08, 0.12])
    assert rows[1][2] == ""  # missing, as in the motion
    even = even_motion(motion).people[0]
    assert even.status.tolist() == [SEEN, MISSING, MISSING, SEEN]
    assert even.joints3d[0] == pytest.approx(motion.people[0].joints3d[0])


def test_trc_with_z_up(tmp_path):
    motion = made_up_motion(people=1)
    (y_up,) = motion.save(tmp_path / "y.trc")
    (z_up,) = motion.save(tmp_path / "z.trc", up="z")
    first, second = (
        np.genfromtxt(file, delimiter="\t", skip_header=6)[:, 2:5] for file in (y_up, z_up)
    )
    np.testing.assert_allclose(second, np.stack([first[:, 0], -first[:, 2], first[:, 1]], 1))


def test_an_unknown_option_of_a_format_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"save got down; known options are up"):
        made_up_motion().save(tmp_path / "x.trc", down="z")


def test_each_format_that_is_offered_has_its_writer():
    assert ("npz", *(ending.removeprefix(".") for ending in WRITERS)) == FORMATS


def uneven_motion(times):
    """One person whose root moves by 1 m per second along x."""
    T = len(times)
    root = np.c_[times, np.zeros(T), np.full(T, 4.0)].astype(np.float32)
    zeros = {"joints3d": (T, 17, 3), "joints2d": (T, 17, 2), "score": (T, 17)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in zeros.items()}
    person = PersonMotion("A", root=root, status=np.full(T, SEEN, np.uint8), height=1.7, **arrays)
    mean = (T - 1) / (times[-1] - times[0])
    return Motion((person,), H36M17, times, mean, (640, 480), 500.0, (319.5, 239.5))


def test_an_uneven_motion_gets_its_usual_rate_and_its_holes_are_missing():
    times = np.r_[np.arange(30) / 30, 11 + np.arange(30) / 30]
    even = even_motion(uneven_motion(times))
    assert even.fps == pytest.approx(30, rel=1e-3)
    (person,) = even.people
    hole = (even.times > 29 / 30 + 1e-6) & (even.times < 11 - 1e-6)
    assert (person.status == np.where(hole, MISSING, SEEN)).all()
    assert np.isnan(person.root[hole]).all()
    assert person.root[~hole, 0] == pytest.approx(even.times[~hole], abs=1e-5)
    assert hole.sum() > 290


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": np.array(0.0)}, "fps is 0"),
        ({"status": np.full((2, 4), 7, np.uint8)}, "a status is above 2"),
        ({"height": np.array([1.7, np.nan])}, "height is nan"),
        ({"focal": np.array(np.nan)}, "focal is nan"),
        ({"size": np.array([-5, 0])}, "size is -5 x 0"),
        ({"root": np.full((2, 4, 3), np.inf, "f4")}, "root has infinite numbers"),
        ({"camera_rotation": np.zeros((3, 2))}, "camera_rotation is not finite, or no array"),
        ({"facts": np.array('{"a": ' + 100_000 * "[")}, "recursion"),
        ({"facts": np.array('{"a": NaN}')}, "holds NaN"),
        ({"facts": np.array('{"a": 1e999}')}, "Out of range"),
        ({"time": np.array([0.0, 0.2, 0.1, 0.3])}, "do not increase"),
        ({"heatlift_motion": np.array([1, 2])}, "has format unknown"),
        ({"heatlift_motion": np.array("x")}, "has format unknown"),
    ],
)
def test_a_damaged_file_of_motion_is_one_line(tmp_path, change, words):
    made_up_motion().save(tmp_path / "a.npz")
    arrays = dict(np.load(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", **{**arrays, **change})
    with pytest.raises(DataError, match=words):
        Motion.load(tmp_path / "a.npz")


def test_a_table_has_scores_and_a_file_of_facts_beside_it(tmp_path):
    motion = made_up_motion(people=1)
    table, beside = motion.save(tmp_path / "motion.csv")
    header, first = (line.split(",") for line in table.read_text().splitlines()[:2])
    assert header[-1] == f"{H36M17.joints[-1]}_score"
    assert float(first[-1]) == pytest.approx(motion.people[0].score[0, -1], abs=1e-5)
    facts = json.loads(beside.read_text())
    assert (beside.name, facts["frame"], facts["unit"]) == ("motion.csv.json", "world", "m")
    assert facts["facts"]["source"]["name"] == "ü ö.mp4"


def test_no_frame_at_the_edge_of_a_hole_is_lost():
    for n in range(8, 20):
        for hole in range(30, 75):
            times = np.r_[np.arange(n), n + hole + np.arange(n)] / 30
            even = even_motion(uneven_motion(times))
            seen = even.people[0].status == SEEN
            assert seen.sum() == 2 * n
            assert even.times[seen] == pytest.approx(times, abs=1e-9)


def test_a_hole_of_hours_gives_no_file_of_hours():
    times = np.r_[np.arange(60) / 30, 30_000 + np.arange(60) / 30]
    even = even_motion(uneven_motion(times))
    assert len(even) == 120
    assert even.times[[0, -1]] == pytest.approx(times[[0, -1]])
