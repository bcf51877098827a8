"""Joint sets: parents, left and right, and conversion by name."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.skeleton import (
    BLAZEPOSE33,
    COCO17,
    DETECTOR_SKELETONS,
    H36M17,
    H36M18,
    MPI3DHP17,
    MPII16,
    SKELETONS,
    Skeleton,
    make_conversion,
)

ALL = [
    pytest.param(skeleton, id=name) for name, skeleton in (SKELETONS | DETECTOR_SKELETONS).items()
]


def pose(skeleton, *, seed=0):
    return np.random.default_rng(seed).normal(size=(2, len(skeleton), 3))


@pytest.mark.parametrize("skeleton", ALL)
def test_every_joint_is_a_descendant_of_the_root(skeleton):
    for joint in range(len(skeleton)):
        steps = 0
        while joint != skeleton.root:
            joint, steps = skeleton.parents[joint], steps + 1
            assert steps <= len(skeleton)
    assert len(skeleton.bones) == len(skeleton) - 1


@pytest.mark.parametrize("skeleton", ALL)
def test_left_and_right_are_paired_by_name(skeleton):
    for left, right in zip(skeleton.left, skeleton.right, strict=True):
        side, _, name = skeleton.joints[left].partition("_")
        assert side == "left"
        assert skeleton.joints[right] == f"right_{name}"
    assert len(skeleton.left) >= 6


@pytest.mark.parametrize("skeleton", ALL)
def test_swapping_sides_twice_is_identity_bit_for_bit(skeleton):
    swap = list(skeleton.swap)
    joints = pose(skeleton)
    assert sorted(swap) == list(range(len(skeleton)))
    assert np.array_equal(joints[:, swap][:, swap], joints)


@pytest.mark.parametrize("skeleton", ALL)
def test_a_mirrored_body_has_the_same_bones_on_the_other_side(skeleton):
    joints = pose(skeleton)
    mirrored = (joints * [-1, 1, 1])[:, list(skeleton.swap)]

    def lengths(body):
        return {
            frozenset((skeleton.joints[a], skeleton.joints[b])): np.linalg.norm(
                body[:, a] - body[:, b], axis=-1
            )
            for a, b in skeleton.bones
        }

    def other(name):
        return skeleton.joints[skeleton.swap[skeleton.index(name)]]

    before, after = lengths(joints), lengths(mirrored)
    for bone, length in before.items():
        partner = frozenset(other(name) for name in bone)
        if partner in after:
            np.testing.assert_allclose(after[partner], length)


def test_h36m17_has_the_joint_order_of_human36m():
    assert H36M17.joints[:4] == ("pelvis", "right_hip", "right_knee", "right_ankle")
    assert H36M17.left == (4, 5, 6, 11, 12, 13)
    assert H36M17.right == (1, 2, 3, 14, 15, 16)
    assert H36M17.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("target", ALL)
def test_converting_to_another_set_and_back_keeps_shared_joints(source, target):
    forward = make_conversion(source, target, allow_missing=True)
    backward = make_conversion(target, source, allow_missing=True)
    joints = pose(source)
    returned = backward.joints(forward.joints(joints))
    shared = set(source.vocabulary) & set(target.vocabulary)
    assert len(shared) >= 12
    for name in shared:
        index = source.vocabulary[name]
        np.testing.assert_array_equal(returned[:, index], joints[:, index])


def test_joints_missing_in_mpii_are_midpoints_and_flagged():
    found = make_conversion(MPII16, H36M17, allow_missing=True)
    joints = pose(MPII16)
    converted = found.joints(joints)
    spine = (joints[:, MPII16.index("pelvis")] + joints[:, MPII16.index("upper_neck")]) / 2
    np.testing.assert_allclose(converted[:, H36M17.index("spine")], spine)
    assert found.made_up == ("spine",)
    assert found.missing == ("nose",)
    assert np.isnan(converted[:, H36M17.index("nose")]).all()


def test_a_joint_from_four_sources_has_their_mean_and_their_lowest_score():
    found = make_conversion(COCO17, H36M17, allow_missing=True)
    parts = [
        COCO17.index(name) for name in ("left_hip", "right_hip", "left_shoulder", "right_shoulder")
    ]
    joints = pose(COCO17)
    score = np.linspace(0.2, 1.0, 17)[None]
    spine = H36M17.index("spine")
    np.testing.assert_allclose(found.joints(joints)[:, spine], joints[:, parts].mean(axis=1))
    assert found.score(score)[0, spine] == score[0, parts].min()
    assert found.score(score)[0, H36M17.index("head")] == 0


def test_conversions_of_published_data_sets():
    to_h36m = make_conversion(MPI3DHP17, H36M17).sources[:, 0]
    assert to_h36m.tolist() == [14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4]
    assert make_conversion(H36M17, H36M18).made_up == ("mid_shoulder",)


def test_a_set_without_a_needed_joint_raises_an_error_with_its_name():
    with pytest.raises(DataError, match="COCO17 cannot become H36M17: no source for head"):
        make_conversion(COCO17, H36M17)
    hands = Skeleton("hands", ("left_palm", "right_palm"), (-1, 0))
    with pytest.raises(DataError, match="hands cannot become COCO17"):
        make_conversion(hands, COCO17, allow_missing=True)


def test_an_array_with_another_number_of_joints_raises_an_error():
    with pytest.raises(DataError, match=r"16 joints is not H36M17 \(17 joints\)"):
        make_conversion(H36M17, H36M18).joints(np.zeros((3, 16, 2)))


def test_a_set_with_more_names_than_parents_raises_an_error():
    with pytest.raises(ValueError, match="2 joints need as many parents"):
        Skeleton("pair", ("a", "b"), (-1,))
    with pytest.raises(KeyError, match="no joint 'tail'"):
        H36M17.index("tail")


def test_blazepose33_has_the_joint_order_of_blazepose():
    numbered = {
        0: "nose",
        3: "left_eye_outer",
        4: "right_eye_inner",
        7: "left_ear",
        10: "right_mouth",
    }
    numbered |= {11: "left_shoulder", 16: "right_wrist", 17: "left_pinky", 22: "right_thumb"}
    numbered |= {23: "left_hip", 28: "right_ankle", 29: "left_heel", 32: "right_foot_index"}
    assert len(BLAZEPOSE33) == 33
    assert {i: BLAZEPOSE33.joints[i] for i in numbered} == numbered
    bones = {(BLAZEPOSE33.joints[a], BLAZEPOSE33.joints[b]) for a, b in BLAZEPOSE33.bones}
    chain = ("left_hip", "left_knee", "left_ankle", "left_heel", "left_foot_index")
    assert {*pairwise(chain), ("right_wrist", "right_thumb")} <= bones


def test_the_top_of_the_head_is_made_up_from_ears_and_shoulders_and_flagged():
    found = make_conversion(BLAZEPOSE33, H36M17)
    joints, score = pose(BLAZEPOSE33).astype(np.float32), np.full((2, 33), 0.9)
    score[:, BLAZEPOSE33.index("right_ear")] = 0.2
    at = {name: joints[:, BLAZEPOSE33.index(name)] for name in BLAZEPOSE33.joints}
    ears = (at["left_ear"] + at["right_ear"]) / 2
    shoulders = (at["left_shoulder"] + at["right_shoulder"]) / 2
    head = H36M17.index("head")
    converted = found.joints(joints)
    assert converted.dtype == np.float32
    np.testing.assert_allclose(converted[:, head], ears + 0.55 * (ears - shoulders), atol=1e-5)
    assert found.made_up == ("pelvis", "spine", "thorax", "head")
    assert found.missing == ()
    flagged = [H36M17.joints[i] for i in np.flatnonzero(found.approximate)]
    assert flagged == ["spine", "thorax", "head"]
    assert found.score(score)[0, [head, H36M17.index("nose")]].tolist() == [0.2, 0.9]


def test_the_head_of_another_set_is_made_up_only_if_asked_for():
    assert make_conversion(COCO17, H36M17, extrapolate=True).made_up[-1] == "head"
    assert make_conversion(COCO17, H36M17, allow_missing=True).missing == ("head",)
    with pytest.raises(DataError, match="no source for head"):
        make_conversion(BLAZEPOSE33, H36M17, extrapolate=False)
    with pytest.raises(DataError, match="no source for nose"):
        make_conversion(MPII16, H36M17, extrapolate=True)
