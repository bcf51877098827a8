"""`heatlift models`: parameters and multiply-adds of the networks, and the printed table."""

from __future__ import annotations

import pytest
import torch
from costs import cost
from torch import nn

from pipeline.cli.models import (
    SYSTEMS,
    count_as_paper004,
    count_multiply_adds,
    count_parameters,
    models,
    table_row,
)

FACTS = {
    ("HRNet-W32", (192, 256)): 28_536_113,
    ("HRNet-W32", (256, 256)): 28_536_113,
    ("HRNet-W48", (192, 256)): 63_595_745,
    ("HRNet-W32 + AM", (192, 256)): 31_988_689,
    ("SimpleBaseline-50", (256, 256)): 33_999_697,
    ("SimpleBaseline-101", (256, 256)): 52_991_825,
    ("SimpleBaseline-152", (256, 256)): 68_635_473,
    ("ResNet-50, 3D", (256, 256)): 34_291_392,
    ("ResNet-50 + SAN", (256, 256)): 39_536_833,
    ("ResNet-152 + SAN", (288, 384)): 74_209_617,
    ("combined deep learner", None): 17_009_346,
    ("cascade", None): 19_200_153,
    ("residual MLP", None): 4_293_680,
    ("VideoPose3D, 27", None): 8_555_571,
    ("VideoPose3D, 81", None): 12_753_971,
    ("VideoPose3D, 243", None): 16_952_371,
    ("PoseFormer, 9", None): 9_563_645,
    ("PoseFormer, 27", None): 9_573_455,
    ("PoseFormer, 81", None): 9_602_885,
    ("PoseFormer, 243", None): 9_691_175,
    ("PoseFormer + SAM + TAM, 9", None): 9_822_717,
    ("PoseFormer + SAM + TAM, 27", None): 9_832_527,
    ("PoseFormer + SAM + TAM, 81", None): 9_861_957,
    ("PoseFormer + SAM + TAM, 243", None): 9_950_247,
    ("MixSTE, 81", None): 33_700_867,
    ("MixSTE, 243", None): 33_783_811,
}
"""System -> parameters, as in the papers or their code."""

QUOTED = {
    ("HRNet-W32", (192, 256)): 7.645e9,
    ("HRNet-W32", (256, 256)): 10.193e9,
    ("HRNet-W48", (192, 256)): 15.692e9,
    ("SimpleBaseline-50", (256, 256)): 7.235e9,
    ("PoseFormer, 9", None): 91.3e6,
    ("PoseFormer, 27", None): 276.0e6,
    ("PoseFormer, 81", None): 846.9e6,
    ("MixSTE, 243", None): 147.4e9,
}
"""System -> multiply-adds, where a paper or its code has them."""


def named(name):
    return next(system for system in SYSTEMS if system.name == name)


def test_every_system_has_a_known_number_of_parameters():
    assert {(system.name, system.image) for system in SYSTEMS} == set(FACTS)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: f"{system.name} {system.image}")
def test_parameters_and_operations_are_those_of_the_papers(system):
    net = system.build()
    assert count_parameters(net) == FACTS[system.name, system.image]
    counted = count_multiply_adds(net, system.example(net))
    assert counted == cost(system.class_path, system.arguments, system.image)
    quoted = QUOTED.get((system.name, system.image), counted)
    assert counted == pytest.approx(quoted, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "cost"), [("ResNet-50, 3D", 14.10e9), ("ResNet-50 + SAN", 14.43e9)]
)
def test_san_costs_what_the_paper_prints_in_the_papers_way_of_counting(name, cost):
    system = named(name)
    net = system.build()
    assert count_as_paper004(net, system.example(net)) == pytest.approx(cost, rel=1e-3)


def test_attention_of_san_costs_a_third_of_a_billion():
    with_it, without = (named(name) for name in ("ResNet-50 + SAN", "ResNet-50, 3D"))
    found = [
        count_multiply_adds(net, s.example(net)) for s in (with_it, without) for net in [s.build()]
    ]
    assert found[0] - found[1] == pytest.approx(0.3450e9, rel=1e-3)


def test_operations_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 5, 2, 2))
    example = torch.empty(1, 3, 8, 8, device="meta")
    net = net.to("meta").eval()
    assert count_multiply_adds(net, example) == 16 * 4 * 27 + 16 * 4 * 5 * 4
    assert count_as_paper004(net, example) == 16 * 4 * 27 + 2 * 16 * 4 + 64 * 5 * 4 * 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VideoPose3D, 27", ("27x17x2", "27 -> 1")),
        ("PoseFormer, 9", ("9x17x2", "9 -> 1")),
        ("residual MLP", ("1x17x2", "1 -> 1")),
        ("SimpleBaseline-50", ("256x256", "-")),
    ],
)
def test_a_row_has_the_size_of_the_input_and_the_frames_of_the_output(name, expected):
    assert table_row(named(name))[2:4] == expected


def cells(line):
    return [cell.strip() for cell in line.split("|")]


def test_the_table_has_a_line_for_each_system(capsys, monkeypatch):
    few = tuple(named(name) for name in ("residual MLP", "ResNet-50 + SAN"))
    monkeypatch.setattr("pipeline.cli.models.SYSTEMS", few)
    models()
    head, rule, mlp, san, *_ = capsys.readouterr().out.splitlines()
    assert cells(head)[:4] == ["system", "source", "input", "frames"]
    assert set(rule) == {"-", "+"}
    assert cells(mlp)[-3:] == ["4,293,680", "4.3 M", ""]
    assert cells(san)[-3:] == ["39,536,833", "8.770 G", "14.430 G"]
