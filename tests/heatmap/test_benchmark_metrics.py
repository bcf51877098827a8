"""Benchmark metrics of COCO and MPII: which people they count, by hand, and over two processes."""

import json
from pathlib import Path

import fabricate
import numpy as np
import pytest
import scipy.io  # noqa: F401  (imported before warnings become errors)
import torch

from pipeline.datasets.coco import Coco
from pipeline.datasets.mixed import MixedSource
from pipeline.datasets.mpii import Mpii
from pipeline.datasets.photos import select_samples
from pipeline.heatmap.benchmark_metrics import CocoMetric, MpiiMetric, make_benchmark_metrics
from pipeline.skeleton import COCO17, H36M17, MPII16, make_conversion

CPU = torch.device("cpu")


def updated(benchmark_metric, samples, joints2d, rows=None):
    """The metric after an update with the joints of some rows of the samples."""
    rows = np.arange(len(samples)) if rows is None else rows
    score = torch.full(joints2d.shape[:2], 0.9)
    area = torch.from_numpy(samples.boxes[:, 2:].prod(1))
    benchmark_metric.update(
        torch.from_numpy(rows), torch.from_numpy(joints2d[rows]), score[rows], area[rows]
    )
    return benchmark_metric


def test_exact_joints_have_an_ap_of_one_and_the_protocol_names_the_boxes(tmp_path):
    samples = Coco(str(fabricate.coco(tmp_path))).samples("test")
    benchmark_metric = updated(
        CocoMetric(samples.truths[0], COCO17, CPU), samples, samples.joints2d
    )
    value, report = benchmark_metric.compute()
    assert (value, len(report)) == (pytest.approx(1.0), 10)
    assert (
        "exact boxes, 17 joints, rescored by joints above 0.2, OKS-NMS 0.9 on the areas"
        in benchmark_metric.protocol()
    )


def test_joints_that_a_network_lacks_count_as_missed(tmp_path):
    samples = Coco(str(fabricate.coco(tmp_path))).samples("test")
    body = make_conversion(COCO17, H36M17, allow_missing=True).joints(samples.joints2d)
    benchmark_metric = updated(CocoMetric(samples.truths[0], H36M17, CPU), samples, body)
    assert benchmark_metric.compute()[0] < 0.5
    assert "counted as missed: left_eye, right_eye, left_ear" in benchmark_metric.protocol()


def test_boxes_of_a_detector_are_tested_on_with_their_scores(tmp_path):
    source = Coco(str(fabricate.coco(tmp_path)), boxes="person_detections.json", box_score=0.1)
    samples = source.samples("test")
    assert len(source.samples("val")) == 4
    assert samples.truths[0].scores.tolist() == [0.9, 0.2]
    assert samples.truths[0].image_ids.tolist() == [7, 8]
    benchmark_metric = updated(
        CocoMetric(samples.truths[0], COCO17, CPU), samples, np.zeros((2, 17, 2))
    )
    assert benchmark_metric.compute()[0] == 0.0
    assert (
        "boxes of person_detections.json with a score of at least 0.1"
        in benchmark_metric.protocol()
    )


def test_pckh_by_hand_with_the_head_boxes_of_the_matlab_file(tmp_path):
    samples = Mpii(str(fabricate.mpii(tmp_path))).samples("test")
    truth = samples.truths[0]
    np.testing.assert_allclose(truth.head, 5.0)  # boxes of 3 x 4 pixels: limits of 1.5 pixels
    moved = truth.joints2d + np.array([1.49, 0.0])
    moved[0] += [0.02, 0.0]
    benchmark_metric = updated(MpiiMetric(truth, MPII16, CPU), samples, moved)
    rest = [j for j, name in enumerate(MPII16.joints) if name not in ("pelvis", "thorax")]
    counts = truth.labelled[:, rest].sum(1)
    assert benchmark_metric.compute()[0] == pytest.approx(counts[1:].sum() / counts.sum())
    assert "head boxes of gt_valid.mat" in benchmark_metric.protocol()


def test_without_head_boxes_the_head_size_is_from_neck_to_crown(tmp_path):
    root = fabricate.mpii(tmp_path)
    (root / "annot" / "gt_valid.mat").unlink()
    samples = Mpii(str(root)).samples("test")
    truth = samples.truths[0]
    ends = [MPII16.index("upper_neck"), MPII16.index("head_top")]
    assert truth.rows.tolist() == np.flatnonzero(samples.labelled[:, ends].all(1)).tolist()
    length = np.linalg.norm(
        samples.joints2d[truth.rows][:, ends[0]] - samples.joints2d[truth.rows][:, ends[1]], axis=1
    )
    np.testing.assert_allclose(0.5 * 0.6 * truth.head, 0.5 * length, rtol=1e-6)


def test_each_benchmark_metric_of_mixed_sources_counts_its_own_people(tmp_path):
    coco, mpii = fabricate.coco(tmp_path / "coco"), fabricate.mpii(tmp_path / "mpii")
    sources = [Mpii(str(mpii)), Coco(str(coco))]
    samples = MixedSource(sources, skeleton="COCO17").samples("test")
    assert [truth.rows.tolist() for truth in samples.truths] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    exact = np.nan_to_num(samples.joints2d)
    of_mpii, of_coco = make_benchmark_metrics(samples.truths, COCO17, CPU)
    updated(of_coco, samples, exact)
    assert of_coco.compute()[0] == pytest.approx(1.0)
    updated(of_mpii, samples, exact, rows=np.arange(4, 8))
    assert int(of_mpii.metric.counted.sum()) == 0


def test_left_out_photographs_take_their_truth_with_them(tmp_path):
    samples = Coco(str(fabricate.coco(tmp_path))).samples("test")
    kept = select_samples(samples, np.array([3, 1]))
    assert kept.truths[0].rows.tolist() == [0, 1]
    assert kept.truths[0].image_ids.tolist() == [10, 8]


def compute_both(root, rows):
    """Values of both metrics for some people, with errors of a pixel or two."""
    sources = [Mpii(f"{root}/mpii"), Coco(f"{root}/coco")]
    samples = MixedSource(sources, skeleton="MPII16").samples("test")
    noise = np.random.default_rng(0).normal(0, 1.2, samples.joints2d.shape)
    benchmark_metrics = make_benchmark_metrics(samples.truths, MPII16, CPU)
    for benchmark_metric in benchmark_metrics:
        for row in np.array_split(rows, 2):
            updated(benchmark_metric, samples, np.nan_to_num(samples.joints2d) + noise, rows=row)
    return [benchmark_metric.compute()[1] for benchmark_metric in benchmark_metrics]


def _compute_in_a_process(rank, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = compute_both(folder, np.arange(rank, 8, 2))
    if rank == 1:
        Path(folder, "report.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, from 3.12 on
def test_two_processes_give_the_metrics_of_one(tmp_path):
    import torch.multiprocessing

    fabricate.coco(tmp_path / "coco")
    fabricate.mpii(tmp_path / "mpii")
    torch.multiprocessing.start_processes(
        _compute_in_a_process, (str(tmp_path),), nprocs=2, start_method="fork"
    )
    alone = compute_both(tmp_path, np.arange(8))
    assert 0 < alone[0]["mean"] < 1
    assert json.dumps(alone) == (tmp_path / "report.json").read_text()
