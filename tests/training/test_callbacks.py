"""Callbacks: the guard against NaN, saved checkpoints, seeds per batch, progress lines."""

from __future__ import annotations

import copy
import json
import random
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from runs import COMMANDS, TINY, differences, outcome, same
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import rng
from pipeline.errors import UsageError
from pipeline.files import torch_files
from pipeline.lift import MixSTE
from pipeline.training import callbacks, saving, signals
from pipeline.training.callbacks import PredictionWriter
from pipeline.training.metrics_rows import read_metrics
from pipeline.training.run_folder import Run, read_state, step_in_name

MPJPE = "val/mpjpe_mm"
FAST = {("pretrain", "loss"), ("lift", "gradient")}
"""Cases that are not slow tests."""


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        pytest.param(stage, where, marks=[] if (stage, where) in FAST else pytest.mark.slow)
        for stage in TINY
        for where in ("loss", "gradient")
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_and_names_the_samples(
    stage, where, heatlift, tmp_path
):
    child = heatlift(*COMMANDS[stage], faults=[("not_finite", 3, where)])
    assert child.wait() == 3
    line = child.stderr.splitlines()[-1]
    problem = "the loss is nan" if where == "loss" else "a gradient is not finite"
    assert line.startswith(f"heatlift: error: {problem} at step 3, samples ")
    run = tmp_path / "runs" / stage / stage
    for path in (run / "checkpoints").iterdir():
        assert all(
            value.isfinite().all()
            for value in torch_files.read_checkpoint(path)["state_dict"].values()
        )
    assert "step-000000002.ckpt" in {path.name for path in (run / "checkpoints").iterdir()}
    assert read_state(run)["state"] == "unfinished"


def test_two_checkpoints_are_kept_and_one_exists_at_any_time(heatlift, tmp_path):
    child = heatlift(*COMMANDS["lift"], "--save_every", "1")
    folder, counts = tmp_path / "runs/lift/lift/checkpoints", []
    while child.process.is_alive():
        counts.append(len(list(folder.glob("step-*.ckpt"))))
        time.sleep(0.002)
    assert child.wait() == 0
    first = counts.index(1)
    assert min(counts[first:]) >= 1
    assert max(counts) <= 3
    assert len(list(folder.glob("step-*.ckpt"))) == 2


def test_the_last_step_of_a_run_with_max_steps_is_saved(heatlift, tmp_path):
    assert (
        heatlift(*COMMANDS["lift"], "--trainer.max_steps", "3", "--save_every", "100").wait() == 0
    )
    assert (tmp_path / "runs/lift/lift/checkpoints/step-000000003.ckpt").exists()


def gradients_of_the_last_step(rank, folder, steps):
    """Train with these steps as one process of three; rank 0 stores the last gradients."""
    torch.set_num_threads(1)
    meet = {"init_method": f"file://{folder}/meet-{steps}", "rank": rank, "world_size": 3}
    torch.distributed.init_process_group("gloo", **meet)
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(23, 23) for _ in range(6)))  # each 2,208 bytes
    wrapper = DistributedDataParallel(module, bucket_cap_mb=0.004)
    callbacks.fix_buckets(wrapper, module)
    for step in steps:
        generator = torch.Generator().manual_seed(10 * step + rank)
        wrapper(torch.randn(7, 23, generator=generator)).square().mean().backward()
        found = [weight.grad.clone() for weight in module.parameters()]
        module.zero_grad()
    if rank == 0:
        torch.save(found, folder / "gradients.pt")


def test_three_processes_add_gradients_alike_in_their_first_and_in_later_steps(tmp_path):
    found = []
    for steps in ([0, 1, 2], [2]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, Python 3.12
            torch.multiprocessing.start_processes(
                gradients_of_the_last_step, (tmp_path, steps), nprocs=3, start_method="fork"
            )
        found.append(torch.load(tmp_path / "gradients.pt"))
    assert same(*found)
    assert all(gradient.any() for gradient in found[0])


def test_fixing_buckets_draws_no_numbers_and_leaves_no_gradients(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout())
    module[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    drawn = torch.get_rng_state()
    callbacks.fix_buckets(DistributedDataParallel(module), module)
    torch.distributed.destroy_process_group()
    assert same(dict(module.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(weight.grad is None for weight in module.parameters())
    assert module(torch.ones(4, 3)).shape == (4, 5)


def test_a_batch_is_seeded_as_by_torch_manual_seed():
    trainer = SimpleNamespace(current_epoch=3, global_rank=1)
    module = SimpleNamespace(device=torch.device("cpu"))
    callbacks.SeedEveryBatch(7).on_train_batch_start(trainer, module, {}, 5)
    drawn = torch.rand(4)
    others = random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(rng.derive_seed(7, "batch", 3, 5, 1))
    assert torch.equal(torch.rand(4), drawn)
    callbacks.SeedEveryBatch(7).on_train_batch_start(trainer, module, {}, 5)
    assert others == (random.random(), np.random.rand())  # noqa: NPY002


def test_in_bf16_the_schedule_takes_as_many_steps_as_the_optimizer(heatlift, tmp_path):
    arguments = ("--trainer.precision", "bf16-mixed", "--trainer.accumulate_grad_batches", "2")
    child = heatlift(*COMMANDS["lift"], *arguments)
    assert child.wait() == 0, child.stderr
    left = outcome(tmp_path, "lift")
    taken = {int(state["step"]) for state in left["optimiser"][0]["state"].values()}
    assert taken == {left["step"]} == {left["schedule"][0]["last_epoch"]}
    assert {value.dtype for value in left["weights"].values()} == {torch.float32}
    assert "\n-1," not in (tmp_path / "runs/lift/lift/metrics.csv").read_text()


def test_more_accumulated_batches_than_an_epoch_has_give_a_warning(heatlift):
    arguments = ("--trainer.accumulate_grad_batches", "30", "--trainer.max_epochs", "1")
    child = heatlift(*COMMANDS["lift"], *arguments)
    assert child.wait() == 0, child.stderr
    assert "accumulate_grad_batches is 30, but an epoch has 8 batches: " in child.stdout


def test_the_best_weights_are_the_validated_ones_also_with_averaging(heatlift, tmp_path):
    arguments = (*COMMANDS["lift"], "--trainer.max_epochs", "2")
    callback = "lightning.pytorch.callbacks.EMAWeightAveraging"
    assert heatlift(*arguments, "--trainer.callbacks", callback).wait() == 0
    folder = tmp_path / "runs" / "lift" / "lift"
    before = (folder / "metrics.csv").read_bytes()
    best = min(value for _, name, value in read_metrics(folder / "metrics.csv") if name == MPJPE)
    arguments = ("lift", "validate", *COMMANDS["lift"][2:])
    child = heatlift(*arguments, "--ckpt_path", folder / "checkpoints" / "best.ckpt")
    assert child.wait() == 0, child.stderr
    (validation,) = folder.glob("validate-*")
    metrics = dict(row[1:] for row in read_metrics(validation / "metrics.csv"))
    assert metrics[MPJPE] == pytest.approx(best, rel=1e-6)
    assert (folder / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(("rate", "last_is_best"), [("0.03", True), ("1.0e-3", False)])
def test_weights_that_a_callback_sets_at_the_end_are_validated_too(
    rate, last_is_best, heatlift, tmp_path
):
    arguments = (*COMMANDS["lift"], "--model.optimizer.lr", rate, "--trainer.max_epochs", "2")
    child = heatlift(*arguments, faults=[("first_weights_at_the_end",)])
    assert child.wait() == 0, child.stderr
    left = outcome(tmp_path, "lift")
    validated = [value for _, name, value in left["metrics"] if name == MPJPE]
    assert len(validated) == 3
    assert (min(validated) == validated[-1]) is last_is_best
    assert same(left["best"], left["weights"]) is last_is_best
    assert "changed after the last validation; validated once more: " in child.stdout


@pytest.mark.slow
@pytest.mark.parametrize("place", ["epoch", "test"])
def test_a_run_killed_at_its_end_keeps_the_weights_of_a_callback(place, heatlift_in, tmp_path):
    arguments = (*COMMANDS["lift"], "--trainer.max_epochs", "2", "--model.optimizer.lr", "0.03")
    changed = ("first_weights_at_the_end",)
    outcomes = []
    for name, more in (("whole", []), ("killed", [("at", place, 16, "kill")])):
        start = heatlift_in(tmp_path / name)
        if more:
            assert start(*arguments, faults=[changed, *more]).wait() == -9
        child = start(*arguments, faults=[changed])
        assert child.wait() == 0, child.stderr
        outcomes.append(outcome(tmp_path / name, "lift"))
    assert differences(*outcomes) == []


def test_lightnings_averaged_weights_are_judged(heatlift, tmp_path):
    (tmp_path / "average.yaml").write_text(
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.StochasticWeightAveraging, "
        "init_args: {swa_lrs: 1.0e-3, swa_epoch_start: 1}}]}\n"
    )
    child = heatlift(*COMMANDS["lift"], "-c", "average.yaml", "--name", "lift")
    assert child.wait() == 0, child.stderr
    validated = [value for _, name, value in outcome(tmp_path, "lift")["metrics"] if name == MPJPE]
    assert len(validated) == 4  # three epochs and the average
    assert f"validated once more: {MPJPE} {validated[-1]:.4g}" in child.stdout


@pytest.mark.slow
def test_a_run_killed_with_lightnings_average_goes_on_from_the_end_of_an_epoch(
    heatlift_in, tmp_path
):
    config = (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.StochasticWeightAveraging, "
        "init_args: {swa_lrs: 1.0e-3, swa_epoch_start: 1}}]}\n"
    )
    arguments = (*COMMANDS["lift"], "-c", "average.yaml", "--name", "lift")
    outcomes = []
    for name, faults in (("whole", [[]]), ("killed", [[("at", "batch", 19, "kill")], []])):
        start = heatlift_in(tmp_path / name)
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "average.yaml").write_text(config)
        for fault in faults:
            child = start(*arguments, faults=fault)
            assert child.wait() == (-9 if fault else 0), child.stderr
        outcomes.append(outcome(tmp_path / name, "lift"))
        assert "only at the end of epochs: StochasticWeightAveraging acts" in child.stdout
    assert differences(*outcomes) == []


@pytest.mark.slow
def test_a_run_that_validates_every_few_steps_goes_on_with_every_validation(heatlift_in, tmp_path):
    interval = ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "3"]
    arguments = (*COMMANDS["lift"], *interval, "--save_every", "1")
    outcomes = []
    for name, faults in (("whole", [[]]), ("killed", [[("at", "batch", 13, "kill")], []])):
        start = heatlift_in(tmp_path / name)
        for fault in faults:
            child = start(*arguments, faults=fault)
            assert child.wait() == (-9 if fault else 0), child.stderr
        outcomes.append(outcome(tmp_path / name, "lift"))
    assert differences(*outcomes) == []


@pytest.mark.parametrize(("total", "saved"), [(10, True), (11, False), (5, False)])
def test_before_a_validation_that_counts_over_epochs_nothing_is_saved(total, saved):
    """Batch 3 of an epoch of 8; validations follow batches 6, 12, … of the training."""
    trainer = SimpleNamespace(
        **dict.fromkeys(("should_stop", "current_epoch", "min_epochs", "min_steps"), 0),
        **{"accumulate_grad_batches": 1, "global_step": 4, "max_steps": -1, "callbacks": []},
        **{"num_training_batches": 8, "val_check_batch": 6, "check_val_every_n_epoch": None},
        fit_loop=SimpleNamespace(total_batch_idx=total),
    )
    assert saving.can_save(trainer, 2) == saved


def test_an_interrupted_save_does_not_count_as_saved(tmp_path):
    run = Run(tmp_path, {"digest": ""})
    checkpoint_callback = saving.CheckpointCallback(run, 1, None)

    def save_checkpoint(path):
        assert checkpoint_callback.state_dict()["step"] == 4
        raise signals.StoppedBySignal(15, "too late")

    trainer = SimpleNamespace(global_step=4, log_every_n_steps=1, logged_metrics={})
    trainer.save_checkpoint, trainer.is_global_zero = save_checkpoint, False
    checkpoint_callback.saved_step = 2
    with pytest.raises(signals.StoppedBySignal):
        checkpoint_callback.save(trainer)
    assert checkpoint_callback.saved_step == 2


def test_predict_removes_its_own_files_and_no_others(tmp_path, capsys):
    folder = tmp_path / "predictions"
    folder.mkdir()
    np.savez(folder / "0000000.npz", joints3d=np.zeros(3), index=np.arange(1))
    np.savez(folder / "0000016.npz", thesis=np.zeros(3))
    np.savez(folder / "notes.npz", index=np.arange(1))
    (folder / "written-0.txt").write_text("0000000.npz\n")
    rank = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(barrier=lambda: None))
    PredictionWriter(tmp_path).on_predict_start(rank, None)
    assert sorted(path.name for path in folder.iterdir()) == ["0000016.npz", "notes.npz"]
    assert "not written by predict, not removed: 0000016.npz, notes.npz" in capsys.readouterr().out


def test_a_copy_of_a_checkpoint_under_another_name_is_no_state_of_the_run():
    names = ["step-000000200.ckpt", "step-1000000000.ckpt", "step-200.ckpt", "step-0000000200.ckpt"]
    assert [step_in_name(Path(name)) for name in names] == [200, 10**9, -1, -1]


def test_the_progress_lines_of_a_week_take_less_than_10_mb(monkeypatch, capsys):
    seconds = 7 * 24 * 3600
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, max_epochs=100, max_steps=-1)
    trainer.num_training_batches, trainer.accumulate_grad_batches = seconds, 1
    trainer.callbacks = []
    trainer.current_epoch = 0
    outputs = {"loss": torch.tensor(0.1234567)}
    progress = callbacks.ProgressLines()
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: 5.0 * trainer.global_step)
    progress.on_train_start(trainer, None)
    for trainer.global_step in range(1, seconds // 5):
        progress.on_train_batch_end(trainer, None, outputs, None, 0)
    output = capsys.readouterr().out
    assert ", loss 0.1235, " in output
    assert output.count("\n") == pytest.approx(seconds / 15, rel=0.01)
    assert len(output) < 10e6


@pytest.mark.filterwarnings("ignore")
def test_the_bar_of_a_training_of_steps_names_epoch_and_steps(trainer, capsys):
    bar = callbacks.OpenProgressBar()
    settings = {"enable_progress_bar": True, "limit_val_batches": 0, "limit_train_batches": 2}
    trainer(max_steps=3, callbacks=[bar], **settings).fit(BoringModel())
    printed = capsys.readouterr()
    assert "epoch 2, from step 2 of 3" in printed.out + printed.err


def test_a_checkpoint_callback_of_lightning_is_an_error(heatlift):
    model_checkpoint = "lightning.pytorch.callbacks.ModelCheckpoint"
    child = heatlift(*COMMANDS["lift"], "--trainer.callbacks", model_checkpoint)
    assert child.wait() == 2
    assert "--trainer.callbacks: ModelCheckpoint cannot be used; " in child.stderr


def test_nothing_is_logged_every_0_steps(heatlift, tmp_path):
    arguments = ("--trainer.log_every_n_steps", "0", "--trainer.max_epochs", "1")
    child = heatlift(*COMMANDS["lift"], *arguments)
    assert child.wait() == 0, child.stderr
    assert not [name for _, name, _ in outcome(tmp_path, "lift")["metrics"] if "train" in name]


def test_a_prediction_removes_only_the_files_that_it_listed(tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in ("0000000.npz", "0000007.npz", "mine.npz"):
        (folder / name).write_text("")
    (folder / "written-0.txt").write_text("0000000.npz\n../x.npz\nmine.npz\n")
    trainer = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(barrier=lambda: None))
    callbacks.PredictionWriter(tmp_path).on_predict_start(trainer, None)
    assert sorted(path.name for path in folder.iterdir()) == ["0000007.npz", "mine.npz"]


def test_a_compiled_network_is_trained_to_the_same_weights_under_the_same_names(heatlift, tmp_path):
    """With the backend that traces the network and its gradient but needs no compiler."""
    compile_it = {"class_path": "pipeline.training.Compile", "init_args": {"backend": "aot_eager"}}
    plain = [*COMMANDS["lift"], "--runs", "plain"]
    assert heatlift(*plain).wait() == 0
    child = heatlift(*COMMANDS["lift"], f"--trainer.callbacks+={json.dumps(compile_it)}")
    assert child.wait() == 0, child.stderr
    one, two = (
        outcome(tmp_path, "lift"),
        torch.load(sorted((tmp_path / "plain/lift/lift/checkpoints").glob("step-*.ckpt"))[-1])[
            "state_dict"
        ],
    )
    assert one["weights"].keys() == two.keys()
    apart = torch.cat([(one["weights"][name] - two[name]).flatten().abs() for name in two])
    # Adam moves a weight whose gradient is nearly zero either way, as the processor rounds it.
    assert apart.mean() < 1e-5
    assert apart.quantile(0.99) < 1e-4


def test_the_compiled_form_is_what_the_network_computes_with():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    module = nn.Module()
    module.net = MixSTE(frames=3, dim=8, depth=1, heads=2)
    callbacks.Compile(backend).on_fit_start(None, module)
    plain, clip = copy.deepcopy(module.net), torch.randn(1, 3, 17, 2)
    torch.testing.assert_close(module.net(clip), plain(clip))
    assert len(graphs) == 1


def test_without_a_compiler_one_line_names_the_remedy(monkeypatch):
    monkeypatch.setattr(callbacks.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
        callbacks.Compile()
    assert callbacks.Compile("aot_eager").backend == "aot_eager"
