"""Faults for child processes of tests: each changes a library, a callback or a dataset."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

from pipeline.cli import stage_cli
from pipeline.training import callbacks


def _print_here():
    sys.stdout.write("HERE\n")
    sys.stdout.flush()


class ActAt(pl.Callback):
    """Calls a function at a place of a run, from a step on.

    Places: `batch` (after a training batch, before a checkpoint is saved), `saved` (after that),
    `validation`, `epoch`, `test`.
    """

    def __init__(self, place, step, act, rank=None):
        self.place, self.step, self.act, self.rank = place, step, act, rank

    def _do(self, place, trainer):
        is_rank = self.rank is None or trainer.global_rank == self.rank
        if place == self.place and is_rank and trainer.global_step >= self.step:
            _print_here()
            self.act()

    def on_train_batch_end(self, trainer, *rest):
        self._do("batch", trainer)

    def on_train_batch_start(self, trainer, *rest):
        self._do("saved", trainer)

    def on_validation_batch_end(self, trainer, *rest):
        if not trainer.sanity_checking:
            self._do("validation", trainer)

    def on_train_epoch_end(self, trainer, *rest):
        self._do("epoch", trainer)

    def on_test_batch_end(self, trainer, *rest):
        self._do("test", trainer)


def _add_callback(callback):
    """Insert a callback before those of the run."""

    def instantiate(self, **options):
        trainer = original(self, **options)
        trainer.callbacks.insert(0, callback)
        return trainer

    original = stage_cli.StageCLI.instantiate_trainer
    stage_cli.StageCLI.instantiate_trainer = instantiate


ACTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(9),
    "hang": lambda: time.sleep(1000),
    "linger": lambda: time.sleep(0.2),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "hangup": lambda: os.kill(os.getpid(), signal.SIGHUP),
    "print": lambda: None,
}


def _raise():
    raise RuntimeError("thrown by a test")


ACTS["raise"] = _raise


def _wait_for_signal():
    """Wait until the test has sent its signal, so that the run cannot end before it."""
    end = time.monotonic() + 60
    while not Path("sent").exists() and time.monotonic() < end:
        time.sleep(0.005)


ACTS["wait"] = _wait_for_signal


def at(place, step, act, rank=None):
    """Print HERE and do one of `ACTS` at a place of a run; see `ActAt`."""
    _add_callback(ActAt(place, step, ACTS[act], rank))


def slow():
    """Make every training batch 50 ms slower."""

    class Slow(pl.Callback):
        def on_train_batch_end(self, *rest):
            time.sleep(0.05)

    _add_callback(Slow())


def small_buckets(mb):
    """Let processes add their gradients in many buckets of at most so many MB."""
    import functools

    from pipeline.cli import trainer_options

    trainer_options.DDPStrategy = functools.partial(trainer_options.DDPStrategy, bucket_cap_mb=mb)


def clock(step=0, seconds=0):
    """Let `max_time` count a second per training batch, and more before the state of a step."""
    from types import SimpleNamespace

    from lightning.pytorch.callbacks import timer

    from pipeline.training import saving

    class Clock(pl.Callback):
        now = 0.0

        def on_train_batch_start(self, *rest):
            self.now += 1.0

    def save(self, trainer, **options):
        counter.now += seconds if trainer.global_step == step else 0.0
        original(self, trainer, **options)

    counter, original = Clock(), saving.CheckpointCallback.save
    saving.CheckpointCallback.save = save
    timer.time = SimpleNamespace(monotonic=lambda: counter.now)
    _add_callback(counter)


def slow_detector(seconds):
    """Make detection some seconds slower."""
    from pipeline.detections import cache

    original = cache.run_jobs_on_rank_zero

    def run_first_rank(*rest):
        time.sleep(seconds)
        original(*rest)

    cache.run_jobs_on_rank_zero = run_first_rank


def few_videos(count):
    """Limit the number of sequences of an evaluation split."""
    from pipeline.lift import windows

    original = windows.WholeSequences.__init__
    windows.WholeSequences.__init__ = lambda self, sequences: original(self, sequences[:count])


def other_code():
    """Let the command see a copy of the package in which the losses have another line."""
    import shutil
    from pathlib import Path

    from pipeline.cli import run_settings

    shutil.copytree(Path(run_settings.__file__).parents[1], "changed/pipeline")
    with Path("changed/pipeline/lift/losses.py").open("a") as file:
        file.write("\nFACTOR = 100\n")
    original = run_settings.code_digests
    run_settings.code_digests = lambda package: original(Path("changed/pipeline"))


def first_weights_at_the_end():
    """Set the weights from before training when training has ended, as an average is set."""

    class FirstWeights(pl.Callback):
        def setup(self, trainer, module, stage):
            if stage == "fit":
                self.first = {name: value.clone() for name, value in module.state_dict().items()}

        def on_train_end(self, trainer, module):
            module.load_state_dict(self.first)

    _add_callback(FirstWeights())


def no_seeds():
    """Disable the seeding before every batch."""
    callbacks.SeedEveryBatch.on_train_batch_start = lambda *rest: None


def not_finite(step, where, rank=None):
    """Make the loss NaN or a gradient infinite at a step."""

    class MakeNonFinite(pl.Callback):
        def on_train_batch_start(self, trainer, module, *rest):
            if trainer.global_step == step and rank in (None, trainer.global_rank):
                weights = next(module.net.parameters())
                if where == "loss":
                    module.training_step = _scaled(module.training_step, float("nan"))
                else:
                    weights.register_hook(lambda gradient: gradient * float("inf"))

    _add_callback(MakeNonFinite())


def _scaled(step, factor):
    return lambda *rest: step(*rest) * factor


def kill_in_save(number):
    """Die while writing the checkpoint of this number, counted from 1."""
    original, count = torch.save, [0]

    def save(content, file, *rest):
        count[0] += 1
        if count[0] == number:
            file.write(b"half a file")
            file.flush()
            ACTS["kill"]()
        return original(content, file, *rest)

    torch.save = save


def kill_in_replace(number):
    """Die after writing and before renaming the checkpoint of this number, counted from 1."""
    from pathlib import Path

    original, count = Path.replace, [0]

    def replace(self, target):
        count[0] += str(target).endswith(".ckpt")
        if count[0] == number:
            ACTS["kill"]()
        return original(self, target)

    Path.replace = replace


def close_terminal(step):
    """Write to a terminal, which is closed at a step."""
    screen, terminal = os.openpty()
    for descriptor in (1, 2):
        os.dup2(terminal, descriptor)
    os.close(terminal)

    def close():
        os.close(screen)
        os.kill(os.getpid(), signal.SIGHUP)

    _add_callback(ActAt("batch", step, close))


def no_hangup():
    """Ignore SIGHUP, as `nohup` does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def kill_workers_in(place):
    """Kill all DataLoader workers within the second `save` or the first `page` of a run."""
    import multiprocessing

    from pipeline.dashboard import callback

    count = [0]

    def kill():
        count[0] += 1
        if count[0] == (2 if place == "save" else 1):
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(0.3)

    def killing(function):
        return lambda *rest, **options: (kill(), function(*rest, **options))[1]

    if place == "save":
        torch.save = killing(torch.save)
    else:
        callback.write_index = killing(callback.write_index)


def hang_in(hook):
    """Print HERE and hang in a hook of the callbacks."""

    class Hang(pl.Callback):
        pass

    def hang(self, *rest, **options):
        _print_here()
        time.sleep(1000)

    setattr(Hang, hook, hang)
    _add_callback(Hang())


def hang_in_imports():
    """Print HERE and hang in the imports at the start of the command."""
    import pipeline.__main__

    class Finder:
        def find_spec(self, *rest):
            _print_here()
            time.sleep(1000)

    del sys.modules["pipeline.cli.launch"], pipeline.cli.launch
    sys.meta_path.insert(0, Finder())


def hang_in_command():
    """Print HERE and hang in a command that is not a stage."""
    from pipeline.cli import commands

    def run_plain(*rest):
        _print_here()
        time.sleep(1000)

    commands.run_plain_command = run_plain


def term_at_the_end():
    """Send SIGTERM when the run is finished and writes its last page."""
    from pipeline.dashboard import callback

    original = callback.write_index

    def write_index(folder):
        if (folder / "run.json").exists() and '"finished"' in (folder / "run.json").read_text():
            _print_here()
            ACTS["term"]()
        return original(folder)

    callback.write_index = write_index


def limit_file_size(step):
    """Limit the size of written files to 20 kB from a step on."""
    import resource

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    _add_callback(ActAt("batch", step, limit))


def full_disk(step):
    """Fill the disk from a step on: each file that is written is `/dev/full`."""
    import io
    from pathlib import Path

    opened = Path.open

    def full(self, mode="r", *rest, **options):
        writes = "w" in mode and str(self).endswith(".part")
        return io.FileIO("/dev/full", mode) if writes else opened(self, mode, *rest, **options)

    _add_callback(ActAt("batch", step, lambda: setattr(Path, "open", full)))


class FaultyDataset:
    """A dataset with a fault in the DataLoader worker at a batch; see `worker`."""

    def __init__(self, dataset, act, batch):
        self.dataset, self.act, self.batch, self.count = dataset, act, batch, 0

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        from pipeline.errors import DataError

        self.count += 1
        if self.count > self.batch:
            if self.act == "bad file":
                raise DataError("walk.avi: frame 7 is grey; repair it")
            ACTS[self.act]()
        return self.dataset[key]


def worker(act, batch):
    """Make the DataLoader worker of this training batch die, hang or read a damaged file."""
    from pipeline.training import loader, stage

    def faulty(dataset, *rest, **options):
        if options.get("workers"):
            dataset = FaultyDataset(dataset, act, batch)
        return original(dataset, *rest, **options)

    original, stage.make_loader = stage.make_loader, faulty
    if act == "hang":
        loader.WORKER_TIMEOUT = 5.0


def full_wandb_disk():
    """Mount a disk of 32 kB as the folder of W&B (needs root)."""
    import subprocess

    from pipeline.dashboard import wandb_logger

    def start(self):
        folder = self.folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
        subprocess.run(mount, check=True)
        return original(self)

    original, wandb_logger.ResilientWandbLogger._start = (
        wandb_logger.ResilientWandbLogger._start,
        start,
    )


def strategy_reads_checkpoints():
    """Let Lightning read checkpoints without the plugin, as a new version could."""
    from lightning.pytorch.strategies import Strategy

    Strategy.load_checkpoint = lambda self, path, **_: torch.load(path, weights_only=True)


def lightning_drops_the_plugin():
    """Let Lightning leave out the plugin for checkpoints."""
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.strategies import Strategy

    Strategy.checkpoint_io = property(lambda self: TorchCheckpointIO(), lambda self, io: None)


def say_who_reads():
    """Print the file of each caller of torch.load; private names of LightningCLI are renamed."""
    load = torch.load

    def reported(*arguments, **options):
        sys.stdout.write(f"READ BY {sys._getframe(1).f_code.co_filename}\n")
        return load(*arguments, **options)

    torch.load = reported
    if "_parse_ckpt_path" in vars(stage_cli.StageCLI):
        del stage_cli.StageCLI._parse_ckpt_path
