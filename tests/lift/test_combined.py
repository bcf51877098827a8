from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from memorise import memorise

from pipeline.__main__ import main
from pipeline.lift import Cascade, CombinedDeepLearner
from pipeline.lift.losses import ZScoredMSE


def test_numbers_of_parameters_are_those_of_the_papers():
    with torch.device("meta"):
        combined, cascade = CombinedDeepLearner(), Cascade()
    assert sum(parameter.numel() for parameter in combined.parameters()) == 17_009_346
    assert sum(parameter.numel() for parameter in cascade.parameters()) == 3 * 6_400_051


def branch(mlp, vectors):
    first = deep = F.relu(mlp.batch_norm1(mlp.w1(vectors)))
    for stage in mlp.linear_stages:
        hidden = F.relu(stage.batch_norm1(stage.w1(deep)))
        deep = deep + F.relu(stage.batch_norm2(stage.w2(hidden)))
    return first, deep


def test_gated_and_plain_branch_are_summed_before_the_last_layer():
    torch.manual_seed(0)
    net, clips = CombinedDeepLearner(16).eval(), torch.randn(3, 2, 17, 2)
    vectors = clips.view(6, 34)
    first, deep = branch(net.gated, vectors)
    gated = net.gated.w2(torch.sigmoid(first * deep))
    _, deep = branch(net.plain, vectors)
    expected = net.out(gated + net.plain.w2(deep)).view(3, 2, 17, 3)
    torch.testing.assert_close(net(clips), expected, rtol=1e-4, atol=1e-5)


def gates(net, clips):
    """Input of the gated branch's last layer."""
    received = []
    net.gated.w2.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    net(clips)
    return received[0]


def test_gate_can_close_only_if_taken_before_the_last_relu():
    torch.manual_seed(0)
    clips = 3 * torch.randn(50, 1, 17, 2)
    assert gates(CombinedDeepLearner(16).eval(), clips).min() >= 0.5
    assert gates(CombinedDeepLearner(16, gate_preact=True).eval(), clips).min() < 0.5


def train(net, clips, poses, steps):
    """Loss of the last step."""
    loss = ZScoredMSE()
    return memorise(net, lambda net: loss(net(clips), poses), steps, 3e-3)[1]


def eight_poses():
    torch.manual_seed(0)
    return torch.rand(8, 1, 17, 2) * 2 - 1, torch.randn(8, 1, 17, 3) * 0.3


def test_eight_poses_are_memorised():
    clips, poses = eight_poses()
    net = CombinedDeepLearner(128, dropout=0.0)
    assert train(net, clips, poses, 150) < 0.01 * poses.var()


def test_stages_of_a_cascade_are_trained_in_turn():
    clips, poses = eight_poses()
    net = Cascade(2, 32, 1, dropout=0.0).train()
    net.set_progress(0.0)
    train(net, clips, poses, 5)
    first, second = ({k: v.clone() for k, v in s.state_dict().items()} for s in net.stages)
    net.set_progress(0.5)
    train(net, clips, poses, 5)
    assert all(
        torch.equal(value, first[name]) for name, value in net.stages[0].state_dict().items()
    )
    assert not torch.equal(net.stages[1].w1.weight, second["w1.weight"])


def test_a_stage_that_was_not_trained_yet_is_not_in_the_sum():
    clips, _ = eight_poses()
    net = Cascade(3, 16, 1).eval()
    net.set_progress(0.34)
    torch.nn.init.normal_(net.stages[1].w2.weight)
    vectors = clips.view(8, 34)
    expected = net.stages[0](vectors) + net.stages[1](vectors)
    torch.testing.assert_close(net(clips).view(8, 51), expected)


def test_a_stage_begins_by_adding_nothing():
    clips, _ = eight_poses()
    net = Cascade(3, 16, 1).eval()
    before = net(clips)
    net.set_progress(0.34)
    assert torch.equal(net(clips), before)


def test_a_later_stage_lowers_the_loss_further():
    clips, poses = eight_poses()
    net = Cascade(2, 64, 1, dropout=0.0).train()
    before = train(net, clips, poses, 20)
    net.set_progress(0.5)
    assert train(net, clips, poses, 60) < 0.5 * before


def test_stages_have_equal_shares_of_the_run_and_the_stage_is_saved():
    net = Cascade(3, 8, 1)
    stages = []
    for epoch in range(9):
        net.set_progress(epoch / 9)
        stages.append(int(net.stage))
    assert stages == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    other = Cascade(3, 8, 1)
    other.load_state_dict(net.state_dict())
    assert other.stage == 2


def test_frozen_stages_stay_in_evaluation_mode():
    net = Cascade(3, 8, 1)
    net.set_progress(2 / 3)
    assert [stage.training for stage in net.train().stages] == [False, False, True]
    assert not any(stage.training for stage in net.eval().stages)


@pytest.mark.parametrize("branches", ["gated", "plain"])
def test_one_branch_alone_is_the_other_one_missing(branches):
    torch.manual_seed(0)
    clips, _ = eight_poses()
    both = CombinedDeepLearner(32, dropout=0.0).eval()
    one = CombinedDeepLearner(32, dropout=0.0, branches=branches).eval()
    names = one.load_state_dict(both.state_dict(), strict=False)
    other = "plain" if branches == "gated" else "gated"
    assert not names.missing_keys
    assert {name.split(".")[0] for name in names.unexpected_keys} == {other}
    torch.nn.init.zeros_(getattr(both, other).w2.weight)
    torch.nn.init.zeros_(getattr(both, other).w2.bias)
    torch.testing.assert_close(one(clips), both(clips))


CASCADE = """
model:
  net: {class_path: pipeline.lift.Cascade, init_args: {stages: 2, width: 16, blocks: 1}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-2}}
  loss: {class_path: pipeline.lift.losses.ZScoredMSE}
data:
  source:
    class_path: pipeline.mocap.Synthetic
    init_args: {train: 1, val: 1, test: 1, actions: [walk], seconds: 0.4}
trainer: {max_epochs: 2, num_sanity_val_steps: 0, limit_test_batches: 1}
save_every: 1
"""


def test_a_cascade_is_trained_in_turn_by_the_command_line(tmp_path, capsys):
    (tmp_path / "cascade.yaml").write_text(CASCADE)
    words = ["lift", "fit", "-c", str(tmp_path / "cascade.yaml"), "--wandb", "off"]
    assert main([*words, "--runs", str(tmp_path)]) == 0, capsys.readouterr().err
    before, last = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in sorted((tmp_path / "lift" / "cascade" / "checkpoints").glob("step-*.ckpt"))[-2:]
    )
    assert before["net.stage"] == last["net.stage"] == 1
    counts = [last[f"net.stages.{i}.batch_norm1.num_batches_tracked"] for i in range(2)]
    assert counts[0] == counts[1] == 2
    assert torch.equal(before["net.stages.0.w1.weight"], last["net.stages.0.w1.weight"])
    assert not torch.equal(before["net.stages.1.w1.weight"], last["net.stages.1.w1.weight"])
