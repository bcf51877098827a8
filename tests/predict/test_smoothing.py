import numpy as np
import pytest
from scipy import signal

from pipeline.errors import UsageError
from pipeline.mocap.synthetic import Synthetic
from pipeline.predict.smoothing import (
    OneEuro,
    bone_lengths,
    bone_variation,
    filter_motion,
    hold_bone_lengths,
    mean_acceleration,
    savgol_window,
)
from pipeline.skeleton import H36M17

LEFT, RIGHT = H36M17.index("left_wrist"), H36M17.index("right_wrist")


@pytest.fixture(scope="module")
def walk():
    sequences = Synthetic().sequences("test")
    joints3d = next(s for s in sequences if "walk" in s.action.lower()).joints3d.astype(float)
    return joints3d - joints3d[:, :1]


def noisy(clip, deviation=0.012, seed=0):
    return clip + np.random.default_rng(seed).normal(scale=deviation, size=clip.shape)


def sine(frequency, rate=50.0, seconds=8):
    time = np.arange(int(seconds * rate)) / rate
    return np.sin(2 * np.pi * frequency * time)[:, None, None] * np.ones((1, 1, 3))


@pytest.mark.parametrize("kind", ["butterworth", "savgol"])
@pytest.mark.parametrize("rate", [25.0, 50.0, 120.0])
def test_slow_motion_stays_and_noise_goes_at_any_frame_rate(kind, rate):
    slow = 0.3 * sine(0.7, rate)
    assert filter_motion(slow, rate, kind) == pytest.approx(slow, abs=0.012)
    still = noisy(np.zeros((400, 3, 3)))
    assert filter_motion(still, rate, kind).std() < 0.9 * still.std()
    if rate >= 50:
        assert filter_motion(still, rate, kind).std() < 0.6 * still.std()


@pytest.mark.parametrize("kind", ["butterworth", "savgol"])
@pytest.mark.parametrize("cutoff", [3.0, 6.0])
def test_noise_passes_below_the_cutoff_and_is_taken_off_above_it(kind, cutoff):
    noise = noisy(np.zeros((4000, 1, 3)), 1.0)
    filtered = filter_motion(noise, 50.0, kind, cutoff)
    frequencies = np.fft.rfftfreq(4000, 1 / 50)
    power = [np.abs(np.fft.rfft(x[:, 0], axis=0)) ** 2 for x in (noise, filtered)]

    def gain(low, high):
        band = (frequencies >= low) & (frequencies < high)
        return np.sqrt(power[1][band].sum() / power[0][band].sum())

    assert gain(0.1, 0.4 * cutoff) == pytest.approx(1, abs=0.12)
    assert gain(2.5 * cutoff, 25) < 0.3
    assert 0.25 < gain(0.9 * cutoff, 1.1 * cutoff) < 0.85


@pytest.mark.parametrize("kind", ["butterworth", "savgol"])
@pytest.mark.parametrize("rate", [25.0, 30.0, 60.0])
def test_a_clap_of_two_frames_stays_a_clap(walk, kind, rate):
    clip = noisy(np.repeat(walk[:1], 90, axis=0), 0.004)
    clip[:, LEFT], clip[:, RIGHT] = noisy(clip[:, LEFT] * 0, 0.004), noisy(clip[:, LEFT] * 0, 0.004)
    clip[:, LEFT] += (0.25, 0.1, -0.35)
    clip[:, RIGHT] += (-0.25, 0.1, -0.35)
    clip[44:46, [LEFT, RIGHT]] = (0.0, 0.1, -0.4)
    filtered = filter_motion(clip, rate, kind)
    held = hold_bone_lengths(filtered, H36M17, bone_lengths(filtered, H36M17))
    for motion in (filtered, held):
        assert np.linalg.norm(motion[44:46, LEFT] - motion[44:46, RIGHT], axis=1).max() < 0.03


@pytest.mark.parametrize("rate", range(17, 130))
def test_the_window_of_savgol_is_the_longest_of_its_main_lobe(rate):
    window = savgol_window(float(rate), 5.0)
    assert (window == 1) == (rate < 18)
    if window == 1:
        return
    frequencies = np.linspace(0, 5.0, 50)
    weights = signal.savgol_coeffs(window, 3)
    offsets = np.arange(window) - window // 2
    gain = np.cos(2 * np.pi * frequencies[:, None] / rate * offsets) @ weights
    assert (np.diff(gain) < 1e-3).all()
    assert 0.45 < gain[-1] < 0.9


@pytest.mark.parametrize("rate", [12.0, 14.0, 15.0])
def test_savgol_erases_no_motion_at_low_frame_rates(rate):
    motion = 0.1 * sine(4.0, rate)
    assert filter_motion(motion, rate, "savgol") == pytest.approx(motion)


def test_a_jump_at_frame_7_stays_at_frame_7():
    clip = np.zeros((10, 17, 3))
    clip[7:] = 0.5
    filtered = filter_motion(noisy(clip, 0.002), 30.0, "butterworth")
    assert np.argmax(np.abs(np.diff(filtered[:, 3, 0]))) == 6


def test_filters_act_in_hertz_not_in_frames():
    rates = (50.0, 100.0)
    tones = [filter_motion(sine(2.0, r), r, "butterworth") for r in rates]
    assert tones[1][::2] == pytest.approx(tones[0], abs=0.01)


def test_one_euro_has_no_knowledge_of_the_future():
    clip = noisy(sine(1.0))
    whole = filter_motion(clip, 50.0, "one-euro", 1.0)
    assert filter_motion(clip[:120], 50.0, "one-euro", 1.0) == pytest.approx(whole[:120])


def test_one_euro_of_a_constant_is_the_constant_and_follows_speed():
    euro = OneEuro(1.0, 0.0)
    for frame in range(200):
        value = euro(np.array([0.0 if frame < 100 else 1.0]), frame / 100)
    assert value[0] == pytest.approx(1 - (1 - 2 * np.pi / (2 * np.pi + 100)) ** 100, rel=1e-9)
    fast, slow = OneEuro(1.0, 5.0), OneEuro(1.0, 0.0)
    for frame in range(60):
        ramp = np.array([frame / 20])
        lags = [ramp[0] - f(ramp, frame / 60)[0] for f in (fast, slow)]
    assert lags[0] < 0.3 * lags[1]


def test_one_euro_starts_again_after_a_gap_and_refuses_time_that_stands_still():
    euro = OneEuro()
    euro(np.array([5.0, 1.0]), 0.0)
    assert np.isnan(euro(np.array([np.nan, 1.0]), 0.1)[0])
    assert euro(np.array([-3.0, 1.0]), 0.2).tolist() == [-3.0, 1.0]
    with pytest.raises(ValueError, match="does not come after"):
        euro(np.array([0.0, 1.0]), 0.2)


def test_a_cutoff_of_zero_is_refused():
    with pytest.raises(UsageError, match="above 0"):
        filter_motion(np.zeros((9, 17, 3)), 30.0, "butterworth", 0.0)


def test_held_bones_have_one_length_and_joints_move_little(walk):
    clip = noisy(walk, 0.015)
    lengths = bone_lengths(clip, H36M17)
    held = hold_bone_lengths(clip, H36M17, lengths)
    assert bone_variation(held, H36M17) < 1e-9
    assert bone_variation(clip, H36M17) > 0.03
    moved = np.linalg.norm(held - clip, axis=-1).mean()
    assert moved < 0.015
    error, before = (np.linalg.norm(m - walk, axis=-1).mean() for m in (held, clip))
    assert error < before


def test_bones_of_both_sides_get_one_length(walk):
    lengths = dict(zip(H36M17.bones, bone_lengths(noisy(walk), H36M17), strict=True))
    assert lengths[5, 6] == lengths[2, 3]


def test_jitter_of_a_parabola_is_its_acceleration():
    frames = np.arange(20.0)
    clip = np.zeros((20, 17, 3))
    clip[..., 1] = (0.0015 * frames**2)[:, None]
    assert mean_acceleration(clip) == pytest.approx(3.0)
    clip[9] = np.nan
    assert mean_acceleration(clip) == pytest.approx(3.0)


def test_a_bone_of_no_length_does_not_count_for_the_change_of_the_bones():
    joints = np.random.default_rng(2).normal(size=(6, 17, 3))
    expected = bone_variation(joints, H36M17)
    joints[:, 10] = joints[:, 9]  # nose and head at one place
    assert 0.5 * expected < bone_variation(joints, H36M17) < 2 * expected
    assert bone_variation(np.zeros((6, 17, 3)), H36M17) == 0.0
