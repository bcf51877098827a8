from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import DataError
from pipeline.heatmap import HeatmapModule, HRNet
from pipeline.heatmap.image_input import ImageInput, ImageNormaliser
from pipeline.integral import SAN, IntegralModule

ORANGE = torch.tensor([255, 128, 0], dtype=torch.uint8).expand(1, 2, 3, 3)
"""One crop, RGB, that no permutation of its channels leaves as it is."""


def seen(normaliser):
    """What a network sees of orange: its three channels."""
    channels = normaliser(ORANGE)
    assert channels.shape == (1, 3, 2, 3)
    assert (channels == channels[:, :, :1, :1]).all()
    return channels[0, :, 0, 0].numpy()


def narrow():
    return HRNet(8, 17, stem=16, planes=8, blocks=1, modules=(1, 1, 1))


def test_a_bgr_network_sees_blue_first_with_the_numbers_of_the_first_channel():
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(seen(ImageNormaliser(ImageInput("BGR"))), expected, rtol=1e-5)


def test_mean_and_deviation_are_those_of_the_network():
    own = ImageInput("RGB", (0.5, 0.25, 0.125), (0.5, 2.0, 1.0))
    expected = [1.0, (128 / 255 - 0.25) / 2, -0.125]
    np.testing.assert_allclose(seen(ImageNormaliser(own)), expected, rtol=1e-5)


def test_the_input_is_stored_with_the_weights():
    bgr, fresh = ImageNormaliser(ImageInput("BGR", (0.5, 0.25, 0.1))), ImageNormaliser()
    fresh.load_state_dict(bgr.state_dict())
    assert fresh.expected == ImageInput("BGR", (0.5, 0.25, 0.1))
    np.testing.assert_array_equal(seen(fresh), seen(bgr))


def test_an_unknown_order_of_channels_is_an_error():
    state = ImageNormaliser().state_dict() | {"order": torch.tensor([1, 0, 2])}
    with pytest.raises(ValueError, match=r"order of the colour channels is \(1, 0, 2\)"):
        ImageNormaliser().load_state_dict(state)


def test_a_checkpoint_without_input_is_rgb_if_a_run_made_it_and_an_error_if_imported():
    module = HeatmapModule(narrow())
    state = {n: v for n, v in module.state_dict().items() if not n.startswith("normalise.")}
    old = {"state_dict": state, "heatlift": {"stage": "heatmap"}}
    module.on_load_checkpoint(old)
    module.load_state_dict(old["state_dict"])
    assert module.normalise.expected == ImageInput("RGB")
    with pytest.raises(DataError, match=r"earlier version .* import the published file again"):
        module.on_load_checkpoint(
            {"state_dict": state, "heatlift": {"stage": "heatmap", "published": {}}}
        )


@pytest.mark.parametrize("stage", ["heatmap", "integral"])
def test_the_input_passes_to_a_stage_that_starts_from_the_weights(tmp_path, stage):
    source = HeatmapModule(narrow(), input_size=(64, 64))
    source.normalise = ImageNormaliser(ImageInput("BGR"))
    state = source.state_dict()
    module = HeatmapModule(narrow(), pretrained=str(tmp_path / "a.ckpt"))
    if stage == "integral":
        san = SAN(50, 18, 8, attention=False)
        module = IntegralModule(san, pretrained=str(tmp_path / "a.ckpt"))
        trunk = {f"net.{n}": v for n, v in san.state_dict().items() if n.startswith("bn1")}
        state = trunk | {n: v for n, v in state.items() if n.startswith("normalise.")}
    torch.save({"state_dict": state, "heatlift": {"stage": "heatmap"}}, tmp_path / "a.ckpt")
    module.print = module.report_weights = lambda _: None  # there is no trainer
    module.setup("fit")
    assert module.normalise.expected.channels == "BGR"


def test_the_given_images_are_not_changed():
    images = torch.full((1, 4, 4, 3), 100.0)
    ImageNormaliser()(images)
    assert (images == 100.0).all()
