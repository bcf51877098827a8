"""Callbacks of every run: fixed buckets of gradients, seeds, NaN guard, predictions, progress."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from pipeline import rng
from pipeline.errors import DataError, NonFiniteError, UsageError
from pipeline.files import writing
from pipeline.training.console import format_duration, print_line
from pipeline.training.progress import Progress
from pipeline.training.run_changes import changed_names, shorten_digests
from pipeline.training.stage import Stage


class FixedBuckets(Callback):
    """Fixes the buckets in which several processes add their gradients, before the first batch.

    DistributedDataParallel forms its buckets twice: when it is made, and again after the first
    backward pass of a process, in the order in which gradients became ready. The order in which
    three or more processes add numbers depends on the buckets, so the first step after a resume
    would differ from the same step of an uninterrupted run in the last bits. Here every process
    first makes a backward pass through a plain sum of all weights, and drops its gradients. From
    the first step on, the buckets depend on the order of the weights in the module alone.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the backward pass, unless the user chose a static graph, which it would define."""
        wrapper = trainer.strategy.model
        if isinstance(wrapper, DistributedDataParallel) and not wrapper.static_graph:
            fix_buckets(wrapper, pl_module)


def fix_buckets(wrapper: DistributedDataParallel, module: nn.Module) -> None:
    """Make a backward pass in which gradients become ready in reverse order of the weights.

    No random number is drawn; weights and gradients are the same afterwards.

    Args:
        wrapper: The module as it is trained by several processes.
        module: The module inside.
    """
    forward = module.forward
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    module.forward = lambda: torch.stack([weight.sum() for weight in weights]).sum()
    try:
        wrapper().backward()
    finally:
        module.forward = forward
    module.zero_grad(set_to_none=True)


class SeedEveryBatch(Callback):
    """Seeds all random generators from (seed, epoch, batch, rank) before every batch.

    A resumed run therefore draws the same numbers as an uninterrupted one, in user code too.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed Python, NumPy, and torch on the CPU and on the device of the run only.

        `torch.manual_seed` takes half a millisecond, because it stores a stack trace for each kind
        of device that is absent.
        """
        seed = rng.derive_seed(
            self.seed, "batch", trainer.current_epoch, batch_idx, trainer.global_rank
        )
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  user code may use it
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)


class SameInputs(Callback):
    """Checks at the start that all processes read the same data with the same code.

    Args:
        inputs: Files of the data and of the code, and their digests, as this process sees them.
    """

    def __init__(self, inputs: Mapping[str, str]) -> None:
        self.inputs = dict(inputs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare the digests of all processes, before the first batch.

        Raises:
            DataError: If they differ, on all processes.
        """
        if trainer.world_size == 1:
            return
        seen: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(seen, self.inputs)
        for rank, other in enumerate(seen):
            if changed := changed_names(seen[0], other):
                name = changed[0]
                here, there = (shorten_digests(i.get(name, "absent")) for i in (seen[0], other))
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                raise DataError(
                    f"process {rank} reads other files than process 0: {name}{more} "
                    f"({here} on process 0, {there} on process {rank}); give all processes the same"
                )


class NonFiniteGuard(Callback):
    """Stops training before a loss or gradient that is not finite changes the weights."""

    def __init__(self) -> None:
        self.batch_samples: list[int] = []
        self.step_samples: list[int] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Store the sample indices of this batch and of all batches of this optimizer step."""
        has_index = isinstance(batch, Mapping) and "index" in batch
        self.batch_samples = torch.as_tensor(batch["index"]).flatten().tolist() if has_index else []
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.step_samples = []
        self.step_samples += self.batch_samples

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Check the loss."""
        if not torch.isfinite(loss):
            self._stop(trainer, f"the loss is {loss.item()}", self.batch_samples)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Check the gradients, unless a gradient scaler does it."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if gradients and not get_total_norm(gradients).isfinite():
            samples: list[Any] = [self.step_samples]
            if trainer.world_size > 1:  # gradients are averaged over all processes
                samples = [None] * trainer.world_size
                torch.distributed.all_gather_object(samples, self.step_samples)
            self._stop(trainer, "a gradient is not finite", *samples)

    @staticmethod
    def _stop(trainer: pl.Trainer, problem: str, *samples: list[int]) -> None:
        """Raise NonFiniteError; `samples` has the sample indices of each process."""
        listed = [
            ", ".join(map(str, part[:16])) + (" …" if len(part) > 16 else "") for part in samples
        ]
        raise NonFiniteError(
            f"{problem} at step {trainer.global_step}, samples "
            f"{'; of the next process '.join(listed) or 'unknown'}; the weights and checkpoints "
            "have not changed in this step; lower the learning rate or check those samples"
        )


class PredictionWriter(Callback):
    """Writes the output of `predict`, one file `predictions/NUMBER.npz` per batch.

    NUMBER is the index of the first sample of the batch. A file has the arrays that the stage's
    `predict_step` returns (a single array is named `joints3d`), `index`, the indices of the samples
    in the test split, and what `Stage.prediction_facts` adds: joint names, units, frame of
    reference and more. Files of an earlier prediction are removed first: those that it listed in
    `predictions/written-RANK.txt` before it wrote them, and no others.

    Args:
        folder: Run folder, in which `predictions/` is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "predictions"

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the files of an earlier prediction."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            writing.remove_leftovers(self.folder)
            for old in written_predictions(self.folder):
                old.unlink()
            for listing in self.folder.glob("written-*.txt"):
                listing.unlink()
            if foreign := sorted(path.name for path in self.folder.glob("*.npz")):
                print_line(
                    f"heatlift: warning: {self.folder}: not written by predict, not removed: "
                    f"{', '.join(foreign[:8])}{', …' if len(foreign) > 8 else ''}"
                )
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the file of this batch."""
        results = outputs if isinstance(outputs, Mapping) else {"joints3d": outputs}
        arrays = {name: value.numpy(force=True) for name, value in results.items()}
        index = arrays["index"] = torch.as_tensor(batch["index"]).numpy(force=True).reshape(-1)
        facts = cast(Stage, pl_module).prediction_facts(index)
        arrays |= {name: np.asarray(value) for name, value in facts.items()}
        path = self.folder / f"{index[0]:07d}.npz"
        with (self.folder / f"written-{trainer.global_rank}.txt").open("a") as listing:
            listing.write(f"{path.name}\n")
        writing.write_atomically(path, lambda file: np.savez(file, **arrays))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the folder and the number of files."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            count = len(written_predictions(self.folder))
            print_line(f"  found      {self.folder}: {count} files")


def written_predictions(folder: Path) -> list[Path]:
    """Files of predictions that `PredictionWriter` wrote into a folder, in order.

    Args:
        folder: Folder of the files and of the lists of their names.
    """
    names = {
        name
        for listing in folder.glob("written-*.txt")
        for name in listing.read_text(errors="replace").splitlines()
        if re.fullmatch(r"\d{7,}\.npz", name)
    }
    return [path for path in map(folder.joinpath, sorted(names)) if path.is_file()]


class ProgressLines(Callback):
    """Prints progress lines where there is no progress bar: steps, epoch, loss, speed, time left.

    Args:
        seconds: Seconds between two lines.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds
        self._start_time = self._last_line = 0.0
        self._start_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store the time and the optimizer step at the start."""
        self._start_time = self._last_line = time.monotonic()
        self._start_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        steps = trainer.global_step - self._start_step
        due = now - self._last_line >= self.seconds or steps == 20
        if not due or not trainer.is_global_zero:
            return
        self._last_line = now
        progress = Progress(trainer, int(trainer.num_training_batches))
        rate = steps / max(now - self._start_time, 1e-9)
        of_steps = f" of {progress.steps}" if progress.steps is not None else ""
        epochs = math.ceil((progress.steps or 0) / progress.steps_per_epoch)
        of_epochs = f" of {epochs}" if epochs else ""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        loss_text = "" if loss is None else f", loss {float(loss):.4g}"
        print_line(
            f"  step {trainer.global_step}{of_steps}, "
            f"epoch {trainer.current_epoch + 1}{of_epochs}{loss_text}, "
            f"{rate:.1f} steps/s, about {format_duration(progress.seconds_left(rate))} left"
        )


class OpenProgressBar(TQDMProgressBar):
    """Progress bar of a training that steps or time end, whose number of epochs is not known.

    Lightning's own bar would show `Epoch 3/-2`.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Begin the bar of an epoch, named by its number and the optimizer steps so far."""
        super().on_train_epoch_start(trainer, *_)
        of_steps = f" of {trainer.max_steps}" if trainer.max_steps >= 0 else ""
        self.train_progress_bar.set_description(
            f"epoch {trainer.current_epoch + 1}, from step {trainer.global_step}{of_steps}"
        )


class Compile(Callback):
    """Trains the form of the network that `torch.compile` makes; off by default.

    `--trainer.callbacks+=pipeline.training.Compile` adds it. Checkpoints hold the same weights
    under the same names. Results are not bit-equal to those without it, and the first steps take a
    minute or more, in validation too. A network that changes a number of its own while it is
    trained, as VideoPose3D does, is compiled for the first eight values, and not for later ones.

    Args:
        backend: Backend of `torch.compile`.

    Raises:
        UsageError: If the backend needs a C++ compiler and there is none.
    """

    def __init__(self, backend: str = "inductor") -> None:
        default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        if backend == "inductor" and not shutil.which(os.environ.get("CXX", default)):
            raise UsageError(
                "Compile: torch.compile needs a C++ compiler and there is none; on Debian or "
                "Ubuntu run: apt-get install g++; or train without this callback"
            )
        self.backend = backend

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the network compiled at its first step."""
        cast(nn.Module, pl_module.net).compile(backend=self.backend)
