"""Faults that tests put into children: each changes what a library or callback does there."""

from __future__ import annotations

import os
import signal
import sys
import time

import lightning.pytorch as pl
import torch

from pipeline.cli import stage_cli
from pipeline.training import callbacks


def _say():
    sys.stdout.write("HERE\n")
    sys.stdout.flush()


class At(pl.Callback):
    """Does something at a place of a run.

    Places: `batch` (after it, before anything is saved), `saved` (after it and what was saved),
    `validation`, `epoch`, `test`.
    """

    def __init__(self, place, step, act, rank=None):
        self.place, self.step, self.act, self.rank = place, step, act, rank

    def _do(self, place, trainer):
        mine = self.rank is None or trainer.global_rank == self.rank
        if place == self.place and mine and trainer.global_step >= self.step:
            _say()
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


def _with_callback(callback):
    def instantiate(self, **options):
        trainer = whole(self, **options)
        trainer.callbacks.insert(0, callback)
        return trainer

    whole = stage_cli.StageCLI.instantiate_trainer
    stage_cli.StageCLI.instantiate_trainer = instantiate


ACTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(9),
    "hang": lambda: time.sleep(1000),
    "linger": lambda: time.sleep(0.2),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "say": lambda: None,
}


def _raise():
    raise RuntimeError("thrown by a test")


ACTS["raise"] = _raise


def at(place, step, act, rank=None):
    """Print HERE and do something at a place of a run."""
    _with_callback(At(place, step, ACTS[act], rank))


def slow():
    """Every batch takes 50 ms longer."""

    class Slow(pl.Callback):
        def on_train_batch_end(self, *rest):
            time.sleep(0.05)

    _with_callback(Slow())


def slow_detector(seconds):
    """The first look at images takes longer."""
    from pipeline.detections import cache

    whole = cache.run_first_rank

    def run_first_rank(*rest):
        time.sleep(seconds)
        whole(*rest)

    cache.run_first_rank = run_first_rank


def few_videos(count):
    """A split to test on has no more than this."""
    from pipeline.lift import windows

    whole = windows.WholeSequences.__init__
    windows.WholeSequences.__init__ = lambda self, sequences: whole(self, sequences[:count])


def no_seeds():
    """Switch the re-seeding before every batch off, and seed once at the start."""
    callbacks.SeedEveryBatch.on_train_batch_start = lambda *rest: None


def not_finite(step, where, rank=None):
    """A loss or a gradient that is NaN or infinite at a step."""

    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, module, *rest):
            if trainer.global_step == step and rank in (None, trainer.global_rank):
                weights = next(module.net.parameters())
                if where == "loss":
                    module.training_step = _scaled(module.training_step, float("nan"))
                else:
                    weights.register_hook(lambda gradient: gradient * float("inf"))

    _with_callback(Poison())


def _scaled(step, factor):
    return lambda *rest: step(*rest) * factor


def kill_in_save(number):
    """Die in the middle of the writing of a checkpoint, counted from 1."""
    whole, count = torch.save, [0]

    def save(content, file, *rest):
        count[0] += 1
        if count[0] == number:
            file.write(b"half a file")
            file.flush()
            ACTS["kill"]()
        return whole(content, file, *rest)

    torch.save = save


def kill_in_replace(number):
    """Die after a checkpoint was written and before it gets its name, counted from 1."""
    from pathlib import Path

    whole, count = Path.replace, [0]

    def replace(self, target):
        count[0] += str(target).endswith(".ckpt")
        if count[0] == number:
            ACTS["kill"]()
        return whole(self, target)

    Path.replace = replace


def hang_in(hook):
    """Say HERE and never come back from a hook of the module."""

    class Hang(pl.Callback):
        pass

    def hang(self, *rest, **options):
        _say()
        time.sleep(1000)

    setattr(Hang, hook, hang)
    _with_callback(Hang())


def hang_in_imports():
    """Say HERE and never come back from the imports that the command line begins with."""
    import pipeline.__main__

    class Finder:
        def find_spec(self, *rest):
            _say()
            time.sleep(1000)

    del sys.modules["pipeline.cli.launch"], pipeline.cli.launch
    sys.meta_path.insert(0, Finder())


def hang_in_command():
    """Say HERE and never come back from a command that is no stage."""
    from pipeline.cli import commands

    def run_plain(*rest):
        _say()
        time.sleep(1000)

    commands.run_plain_command = run_plain


def term_at_the_end():
    """SIGTERM comes when the run is finished and writes its last page."""
    from pipeline.dashboard import callback

    whole = callback.write_index

    def write_index(folder):
        if (folder / "run.json").exists() and '"finished"' in (folder / "run.json").read_text():
            _say()
            ACTS["term"]()
        return whole(folder)

    callback.write_index = write_index


def limit_file_size(step):
    """From a step on, no file may grow beyond 20 kB."""
    import resource

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    _with_callback(At("batch", step, limit))


class Bad:
    """A data set in whose loader process an act happens at a batch."""

    def __init__(self, whole, act, batch):
        self.whole, self.act, self.batch, self.made = whole, act, batch, 0

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, key):
        from pipeline.errors import DataError

        self.made += 1
        if self.made > self.batch:
            if self.act == "bad file":
                raise DataError("walk.avi: frame 7 is grey; repair it")
            ACTS[self.act]()
        return self.whole[key]


def worker(act, batch):
    """The process that makes this training batch dies, hangs or meets a bad file."""
    from pipeline.training import loader

    def faulty(dataset, *rest, **options):
        bad = Bad(dataset, act, batch) if options.get("workers") else dataset
        return whole(bad, *rest, **options)

    whole, loader.make_loader = loader.make_loader, faulty
    if act == "hang":
        loader.WORKER_TIMEOUT = 5.0


def full_wandb_disk():
    """The folder that W&B writes to is a disk of 32 kB (needs root)."""
    import subprocess

    from pipeline.dashboard import wandb_logger

    def start(self):
        folder = self.folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
        subprocess.run(mount, check=True)
        return whole(self)

    whole, wandb_logger.ResilientWandbLogger._start = (
        wandb_logger.ResilientWandbLogger._start,
        start,
    )
