"""The image of the demo's page: a clip through a 2D stage and a lifter."""

from pipeline.experiments.demo_image import SIDE, draw_chain


def test_a_clip_is_drawn_through_both_stages_with_a_row_for_each_frame(uninterrupted):
    best = []
    for stage in ("heatmap", "lift"):
        uninterrupted(stage)
        best.append(uninterrupted.folders[stage,] / "checkpoints" / "best.ckpt")
    sheet = draw_chain(*best, clip="wave camera2", frames=(3, 900))  # 900: the last frame
    assert 2 * SIDE < sheet.shape[0] < 3 * SIDE
    assert 6 * SIDE < sheet.shape[1] < 7 * SIDE
    other = draw_chain(*best, clip="walk camera1", frames=(3, 900))
    assert other.shape == sheet.shape
    assert (other != sheet).any()
