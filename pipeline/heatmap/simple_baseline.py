"""The simple baseline of Xiao et al.: heatmaps from a ResNet and three transposed convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.heatmap.resnet import ResNet, deconvolution_head, init_small


class SimpleBaseline(ResNet):
    """The simple baseline: heatmaps from a ResNet and three transposed convolutions.

    ====================== ========================
    normalised images      (B, 3, H, W)
    ResNet                 (B, 2048, H/32, W/32)
    deconvolutions         (B, 256, H/4, W/4)
    1x1 convolution        (B, J, H/4, W/4)
    ====================== ========================

    Args:
        layers: Layers of the ResNet: 50, 101 or 152.
        joints: Number of joints J.

    Source: Xiao et al. 2018, section 2; published names of weights (338 tensors at 50 layers).
    Differs from the published code: it is trained on RGB, as its ImageNet weights were; the code
    gives it BGR. Imported weights get BGR, see `pipeline.weights.matching.published_input`.
    """

    def __init__(self, layers: int = 50, joints: int = 17) -> None:
        super().__init__(layers)
        self.deconv_layers = deconvolution_head()
        self.final_layer = nn.Conv2d(256, joints, 1)
        init_small(self.final_layer)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> heatmaps (B, J, H/4, W/4)."""
        return self.final_layer(self.deconv_layers(self.features(images)))
