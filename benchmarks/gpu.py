"""Training on a GPU: speed, short trainings and DDP, as dated tables for docs/performance.md.

Usage: python benchmarks/gpu.py [--part steps|train|ddp] [--network mixste|hrnet|san] [--minutes 25]
    [--root FOLDER] [--photos FOLDER] [--tiny]

- steps: optimizer steps per second against the published way of work with the same weights, the
  share of the card's bf16 peak, the memory, and the batches per second of the DataLoader.
- train: `heatlift` trains each network for a few minutes: validation errors and steps per second.
- ddp: a training with as many processes as there are cards ends with the weights of one process.

Without a GPU it prints one line and ends with exit code 0, so that `make bench` goes on; `--tiny`
runs all parts with tiny networks on the CPU, to test the script. A row that fails, for example
because the memory is too small, has the reason in it, and the other rows follow. Exit code 1: a row
failed for another reason than memory or time, or results were not equal.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import gc
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from heatmap import loss_by_joint
from lifters import PublishedMixSTE
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.heatmap import HRNet, targets
from pipeline.heatmap.data import HeatmapDataModule
from pipeline.heatmap.module import HeatmapModule
from pipeline.integral import SAN
from pipeline.integral.data import IntegralDataModule
from pipeline.integral.module import IntegralModule
from pipeline.lift import MixSTE
from pipeline.lift.data import LiftDataModule
from pipeline.lift.module import LiftModule
from pipeline.mocap import Mocap, Synthetic
from pipeline.training.metrics_file import read_metrics
from pipeline.training.run_folder import step_in_name
from pipeline.training.stage import Stage, StageData, make_optimizer

ROOT = Path(__file__).parents[1]

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
}
"""Words of a card's name -> FLOP/s of its dense bf16 products, as NVIDIA's data sheets have them.
The first words that a name contains count."""

OUTPUT_TOLERANCE = {"mixste": 1e-4, "hrnet": 1e-2, "san": 1e-2}
"""Network -> largest difference of its float32 outputs from those of the published form, relative
to the largest output. Convolutions on GPUs round their float32 inputs to TF32."""

WEIGHT_TOLERANCE = 1e-3
"""Largest difference of the weights after a training with DDP, relative to the change of the
weights in the last steps."""

PARTS = ("steps", "train", "ddp")

FEW: dict[str, Any] = {
    "train": 2,
    "val": 1,
    "test": 1,
    "actions": ("walk", "wave"),
    "seconds": 2.0,
}
"""Arguments of few embedded people."""

TINY_MIXSTE = {"frames": 9, "dim": 16, "depth": 2, "heads": 2}
TINY_HRNET = {"width": 8, "stem": 8, "planes": 8, "blocks": 1, "modules": (1, 1, 1)}

IMAGES = 20_000
"""Rendered images of the training split."""


# ---- the card --------------------------------------------------------------------------------


def data_sheet_peak(name: str) -> float | None:
    """FLOP/s of dense bf16 products of a card; None if `PEAKS` does not have it."""
    return next((peak for words, peak in PEAKS.items() if re.search(rf"\b{words}\b", name)), None)


def product_rate(device: torch.device, size: int, seconds: float) -> float:
    """FLOP/s of a bf16 product of two square matrices of random numbers."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 * steps_per_second(lambda: one @ other, device, seconds)


def driver_version() -> str:
    """Version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split()[0]


def synchronise(device: torch.device) -> None:
    """Wait for the card."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps_per_second(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median over five blocks of the calls of a function per second of wall time.

    Args:
        step: Function that is timed.
        device: Device that it runs on.
        seconds: Time of all blocks together; 0 for three calls, of which one is timed.
    """
    for _ in range(3 if seconds else 1):  # the first calls choose kernels and allocate memory
        step()
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    calls = max(1, int(seconds / 5 / (time.perf_counter() - start)))
    rates = []
    for _ in range(5 if seconds else 1):
        start = time.perf_counter()
        for _ in range(calls):
            step()
        synchronise(device)
        rates.append(calls / (time.perf_counter() - start))
    return statistics.median(rates)


# ---- tables ----------------------------------------------------------------------------------


class NoTimeLeft(Exception):
    """The time of the command is over."""


class Clock:
    """Time that is left of `--minutes`."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            NoTimeLeft: If it is less than one.
        """
        seconds = self.end - time.monotonic()
        if seconds < 1:
            raise NoTimeLeft("no time left (--minutes)")
        return seconds


class Table:
    """A Markdown table that is printed row by row; a row that fails has the reason in it.

    Args:
        columns: Names of the columns.

    Attributes:
        failures: Number of rows that failed for another reason than memory or time.
    """

    def __init__(self, *columns: str) -> None:
        self.columns, self.failures = columns, 0
        print(f"\n{self._line(columns)}\n|{'---|' * len(columns)}", flush=True)

    def _line(self, cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cells)} |"

    def add(self, *cells: str) -> None:
        """Print a row."""
        assert len(cells) == len(self.columns)
        print(self._line(cells), flush=True)

    @contextlib.contextmanager
    def attempt(self, *names: str) -> Iterator[None]:
        """A block that adds a row; if it fails, the row has these first cells and the reason."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())[:160].replace("|", "/")
            if is_out_of_memory(error):
                reason = "out of memory"
            elif not isinstance(error, NoTimeLeft):
                self.failures += 1
                reason = f"{type(error).__name__}: {reason}"
            self.add(*names, reason, *[""] * (len(self.columns) - len(names) - 1))
        gc.collect()
        torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is that of an allocation, on a card or on a CPU."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


# ---- steps -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
    """A network whose training steps are timed.

    Args:
        name: Name in the table.
        make: Makes the module of its stage; in the published form if the argument is true.
        data: Makes the data module with this batch size.
        batches: Batch sizes.
    """

    name: str
    make: Callable[[bool], Stage]
    data: Callable[[int], StageData]
    batches: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """How a training step is computed.

    Args:
        published: Whether the network and its loss have the published form.
        precision: 32-true or bf16-mixed.
    """

    published: bool
    precision: str

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"{'published' if self.published else 'Heatlift'}, {self.precision}"


FORMS = tuple(Form(published, p) for published in (True, False) for p in ("32-true", "bf16-mixed"))


def networks(root: Path | None, *, tiny: bool) -> dict[str, Network]:
    """The networks in their published sizes; `tiny` ones for tests of this script."""
    workers = 0 if tiny else len(os.sched_getaffinity(0))
    rendered = Synthetic(**FEW, images=64) if tiny else Synthetic(images=IMAGES)
    source = Mocap(root, bodies="random_adults") if root else rendered
    mixste, hrnet = (TINY_MIXSTE, TINY_HRNET) if tiny else ({}, {})
    bins, small, square = (4, (64, 64), (64, 64)) if tiny else (64, (192, 256), (256, 256))

    def make_lifter(published: bool) -> Stage:
        adam = partial(torch.optim.AdamW, lr=4e-5, weight_decay=0.1)
        return LiftModule((PublishedMixSTE if published else MixSTE)(**mixste), adam)

    def make_heatmaps(published: bool) -> Stage:
        return HeatmapModule(
            HRNet(**hrnet), input_size=small, rounded=published, channels_last=not published
        )

    def make_volumes(published: bool) -> Stage:
        net = SAN(depth_bins=bins)
        return IntegralModule(net, input_size=square, channels_last=not published)

    return {
        "mixste": Network(
            f"MixSTE, {MixSTE(**mixste).frames} frames",
            make_lifter,
            lambda batch: LiftDataModule(source, "noisy", batch_size=batch),
            (2,) if tiny else (4, 16),
        ),
        "hrnet": Network(
            f"HRNet-W{hrnet.get('width', 32)}, {small[1]}x{small[0]}",
            make_heatmaps,
            lambda batch: HeatmapDataModule(
                rendered, input_size=small, batch_size=batch, workers=workers
            ),
            (2,) if tiny else (32, 128),
        ),
        "san": Network(
            f"SAN-50, {square[1]}x{square[0]}, {bins} bins",
            make_volumes,
            lambda batch: IntegralDataModule(
                rendered, input_size=square, batch_size=batch, workers=workers
            ),
            (2,) if tiny else (32,),
        ),
    }


def network_input(module: Stage, batch: Mapping[str, Tensor]) -> Tensor:
    """Input of the network of a module: clips, or normalised images."""
    if isinstance(module, LiftModule):
        return batch["joints2d"]
    images: Tensor = module.normalised(batch["image"])  # type: ignore[operator]
    return images


def count_training_flops(net: nn.Module, example: Tensor) -> int:
    """FLOPs of the products of one forward and backward pass, by torch's counter.

    Norms, activations, losses and the optimizer are not counted.
    """
    net = copy.deepcopy(net).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        net(torch.empty_like(example, device="meta")).sum().backward()
    return counter.get_total_flops()


def make_step(
    module: Stage, form: Form, batch: dict[str, Tensor], device: torch.device
) -> Callable[[], object]:
    """One optimizer step of a module on the same batch, as a function.

    The published way of HRNet has normalised images and heatmaps in the batch and adds the loss
    joint by joint.
    """
    optimizer = make_optimizer(module)
    joint_by_joint = form.published and isinstance(module, HeatmapModule)
    images = maps = torch.empty(0)
    if isinstance(module, HeatmapModule) and joint_by_joint:
        images = module.normalised(batch["image"])
        size = (images.shape[-1] // targets.STRIDE, images.shape[-2] // targets.STRIDE)
        cells = targets.to_cells(batch["joints2d"].float(), offset=module.offset)
        maps = module.encode(cells, size, sigma=module.sigma)

    def loss() -> Tensor:
        if joint_by_joint:
            return loss_by_joint(module.net(images).float(), maps, batch["weight"])
        if isinstance(module, LiftModule):
            predicted = module(batch["joints2d"], batch["visible"])
            return module.loss(predicted, batch["joints3d"], batch["valid"])
        return module.loss(module(batch["image"]), batch)

    def step() -> None:
        optimizer.zero_grad()
        with mixed_precision(form.precision, device):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def mixed_precision(precision: str, device: torch.device) -> torch.autocast:
    """The context in which Lightning runs a training step."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def open_loader(network: Network, module: Stage, batch: int) -> Any:
    """The DataLoader of the training split."""
    data = network.data(batch)
    data.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
    data.train_set = data.training_set()
    return data.train_dataloader()


def batches_per_second(loader: Any, seconds: float) -> tuple[dict[str, Tensor], float]:
    """First batch of a DataLoader, and its batches per second after the workers have started."""
    batches, count = iter(loader), 0
    first = next(batches)
    for _ in range(2 * loader.num_workers):  # prepared while the workers started
        next(batches, None)
    start = time.perf_counter()
    for _ in batches:
        count += 1
        if time.perf_counter() - start > seconds:
            break
    return first, count / (time.perf_counter() - start)


@torch.no_grad()
def evaluate(module: Stage, batch: Mapping[str, Tensor], form: Form) -> Tensor:
    """Output of the network in evaluation, float32, on the CPU."""
    example = network_input(module, batch)
    with mixed_precision(form.precision, example.device):
        output: Tensor = module.eval().net(example)
    return output.float().cpu()


def measure_steps(
    chosen: Mapping[str, Network],
    device: torch.device,
    clock: Clock,
    peak: float,
    *,
    seconds: float,
) -> int:
    """Time the training steps of all networks, batch sizes and forms; print a table.

    Args:
        chosen: Networks by their short names.
        device: Device that trains.
        clock: Time that is left.
        peak: FLOP/s that shares are relative to.
        seconds: Time of a row.

    Returns:
        Number of rows that failed.
    """
    table = Table(
        *("network", "batch", "form", "steps/s", "ratio", "TFLOP/s", "share of peak"),
        *("peak memory", "difference", "batches/s of the DataLoader"),
    )
    for key, network in chosen.items():
        for size in network.batches:
            names = (network.name, str(size))
            with table.attempt(*names):
                clock.left()
                torch.manual_seed(0)
                module = network.make(False)
                first, feeding = batches_per_second(open_loader(network, module, size), seconds)
                flops = count_training_flops(module.net, network_input(module, first))
                batch = {name: value.to(device) for name, value in first.items()}
                results: dict[Form, tuple[float, Tensor]] = {}
                for form in FORMS:
                    with table.attempt(*names, form.name):
                        clock.left()
                        row = measure_form(
                            *(network, form, batch, device, results),
                            flops=flops,
                            peak=peak,
                            seconds=seconds,
                        )
                        table.add(*names, form.name, *row, f"{feeding:.3g}")
                        check_outputs(form, results, OUTPUT_TOLERANCE[key])
    return table.failures


def measure_form(
    network: Network,
    form: Form,
    batch: dict[str, Tensor],
    device: torch.device,
    results: dict[Form, tuple[float, Tensor]],
    *,
    flops: int,
    peak: float,
    seconds: float,
) -> tuple[str, ...]:
    """Cells of a row of the table of steps; steps/s and outputs are added to `results`."""
    torch.manual_seed(0)
    module = network.make(form.published).to(device)
    output = evaluate(module, batch, form)
    step = make_step(module.train(), form, batch, device)
    memory = "-"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rate = steps_per_second(step, device, seconds)
    if device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    results[form] = rate, output
    ratio = difference = "-"
    if FORMS[0] in results:
        reference_rate, reference = results[FORMS[0]]
        ratio = f"{rate / reference_rate:.3g}"
        difference = f"{relative_difference(output, reference):.1e}"
    share = f"{100 * flops * rate / peak:.1f} %"
    return f"{rate:.3g}", ratio, f"{flops * rate / 1e12:.3g}", share, memory, difference


def relative_difference(output: Tensor, reference: Tensor) -> float:
    """Largest difference of two outputs, relative to the largest value of the reference."""
    return float((output - reference).abs().max() / reference.abs().max().clamp(min=1e-6))


def check_outputs(
    form: Form, results: Mapping[Form, tuple[float, Tensor]], tolerance: float
) -> None:
    """Check that a form in float32 has the outputs of the published one.

    Raises:
        ValueError: If it has not; then its ratio compares unequal work.
    """
    if form.precision == "32-true" and FORMS[0] in results:
        difference = relative_difference(results[form][1], results[FORMS[0]][1])
        if not difference <= tolerance:
            raise ValueError(f"outputs differ by {difference:.1e}, more than {tolerance:g}")


# ---- commands --------------------------------------------------------------------------------


def run_heatlift(arguments: list[str], log: Path, seconds: float) -> tuple[str, bool]:
    """Run `heatlift` in a process of its own; after the time it is told to stop.

    Args:
        arguments: Arguments of `heatlift`.
        log: File for what it prints.
        seconds: Time after which it is stopped.

    Returns:
        What it printed, and whether it was stopped.

    Raises:
        MemoryError: If the memory was too small.
        RuntimeError: If it failed otherwise.
    """
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": paths, "NCCL_DEBUG": "VERSION", "WANDB": "off"}
    command = [sys.executable, "-m", "pipeline", *arguments]
    print(f"gpu: heatlift {shlex.join(arguments)}", file=sys.stderr, flush=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, text=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it saves its state and ends
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
    printed = log.read_text()
    if "out of memory" in printed.lower():
        raise MemoryError
    if code not in (0, 143):
        lines = [line for line in printed.splitlines() if line.strip()] or [""]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise RuntimeError(f"exit code {code}: {errors[-1]}")
    return printed, code == 143


@dataclasses.dataclass(frozen=True)
class Training:
    """A short training by `heatlift`.

    Args:
        network: Short name of its network.
        stage: Name of the stage.
        config: Its config.
        arguments: Further arguments.
        data: Data in the table.
        batch: Samples per step.
        metric: Validation metric in the table.
        best: Smallest or largest of its values.
    """

    network: str
    stage: str
    config: str
    arguments: list[str]
    data: str
    batch: int
    metric: str = "val/mpjpe_mm"
    best: Callable[[list[float]], float] = min


def class_of(class_path: str, **arguments: Any) -> dict[str, Any]:
    """A class of `pipeline` with its arguments, as a value of the command line."""
    return {"class_path": f"pipeline.{class_path}", "init_args": arguments}


def options(**values: Any) -> list[str]:
    """Options of the command line; `__` in a name stands for a dot, and values may be nested."""
    return [
        word
        for name, value in values.items()
        for word in (
            f"--{name.replace('__', '.')}",
            value if isinstance(value, str) else json.dumps(value),
        )
    ]


def trainings(root: Path | None, photos: Path | None, *, tiny: bool) -> list[Training]:
    """The short trainings, in order; `lift` starts from the weights of `pretrain`."""
    rendered = class_of("mocap.Synthetic", **(FEW | {"images": 64} if tiny else {"images": IMAGES}))
    recorded = class_of("mocap.Mocap", root=str(root), bodies="random_adults")
    photographs = [class_of(f"datasets.{name}", root=str(photos)) for name in ("Coco", "Mpii")]
    motion, images = ("CMU recordings" if root else "embedded people"), "rendered people"
    sizes = TINY_MIXSTE if tiny else {"frames": 243, "dim": 512, "depth": 8, "heads": 8}
    net = class_of("lift.MixSTE", **sizes, drop_path=0.0, spread=0.5)
    clips, crops = (4, 4) if tiny else (16, 64)
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, "weight_decay": 0.01}}
    mixste = options(
        data__source=recorded if root else rendered,
        data__batch_size=clips,
        model__net=class_of("lift.CentredLifter", net=net),
        model__optimizer=adamw,
    )
    both = {
        "data__workers": 0 if tiny else min(16, len(os.sched_getaffinity(0))),
        "data__batch_size": crops,
        "model__schedule": "pipeline.training.WarmupCosine",
        **({"data__input_size": [64, 64]} if tiny else {}),
    }
    hrnet, san = both | {"data__source": rendered}, both | {"data__source": rendered}
    if tiny:
        hrnet["model__net"] = {"class_path": "pipeline.heatmap.HRNet", "init_args": TINY_HRNET}
        san["model__net__init_args__depth_bins"] = 4
    if photos:
        hrnet["data__source"] = class_of("datasets.MixedSource", sources=[rendered, *photographs])
        san["data__photographs"] = class_of("datasets.MixedSource", sources=photographs)
        images = "rendered people and photographs"
    return [
        Training("mixste", "pretrain", "pretrain/mixste_mocap", mixste, motion, clips),
        Training(
            *("mixste", "lift", "lift/mixste_mocap"),
            [*mixste, *options(data__detections="noisy")],
            f"{motion}, noisy 2D",
            clips,
        ),
        Training(
            *("hrnet", "heatmap", "heatmap/hrnet_w32", options(**hrnet), images, crops),
            *("val/pck_0.1", max),
        ),
        Training("san", "integral", "integral/san_resnet50", options(**san), images, crops),
    ]


def train(chosen: list[Training], folder: Path, clock: Clock, *, tiny: bool, reserve: float) -> int:
    """Train for the time that is left, in equal parts; print a table.

    Args:
        chosen: The trainings.
        folder: Folder of the runs.
        clock: Time that is left.
        tiny: Whether to train three steps only.
        reserve: Seconds to leave for later parts.

    Returns:
        Number of trainings that failed.
    """
    table = Table("training", "data", "steps", "steps/s", "validation", "minutes")
    pretrained = "none"
    for number, training in enumerate(chosen):
        name = f"{training.network}, `{training.stage}`"
        with table.attempt(name, training.data):
            seconds = (clock.left() - reserve) / (len(chosen) - number)
            if seconds < 60:
                raise NoTimeLeft("no time left (--minutes)")
            run = folder / training.stage / "gpu"
            arguments = fit_arguments(training, folder, pretrained, None if tiny else seconds)
            start = time.monotonic()
            try:
                _, stopped = run_heatlift(arguments, folder / f"{training.stage}.log", seconds)
            finally:
                best = run / "checkpoints/best.ckpt"
                if training.stage == "pretrain" and best.exists():
                    pretrained = str(best)
            taken = f"{(time.monotonic() - start) / 60:.1f}{', stopped' if stopped else ''}"
            table.add(name, training.data, *training_cells(training, run), taken)
    return table.failures


def fit_arguments(
    training: Training, folder: Path, pretrained: str, seconds: float | None
) -> list[str]:
    """Arguments of `heatlift` for a training.

    Args:
        training: The training.
        folder: Folder of the runs.
        pretrained: Weights that `lift` starts from, or none.
        seconds: Time of the command; None for three steps on the CPU.
    """
    limits: dict[str, Any] = {"trainer__max_epochs": -1, "trainer__limit_test_batches": 1}
    if seconds is None:
        limits |= {"trainer__max_steps": 3, "trainer__accelerator": "cpu"}
        limits |= {"trainer__limit_val_batches": 1, "trainer__log_every_n_steps": 1}
        limits |= {"trainer__val_check_interval": 3}
    else:  # the start, the last validation and the test take time, too
        minutes, rest = divmod(max(10, int(0.75 * seconds - 25)), 60)
        limits["trainer__max_time"] = f"00:00:{minutes:02d}:{rest:02d}"
    if training.stage == "lift":
        limits["model__pretrained"] = pretrained
    limits |= {"runs": str(folder), "name": "gpu", "trainer__precision": "bf16-mixed"}
    words = [training.stage, "fit", "-c", training.config, *training.arguments]
    return words + options(**limits)


def training_cells(training: Training, run: Path) -> tuple[str, str, str]:
    """Steps, steps per second and validation of a run, from its checkpoints and metrics."""
    rows = read_metrics(run / "metrics.csv")
    steps = max((step_in_name(path) for path in run.glob("checkpoints/step-*.ckpt")), default=0)
    speeds = [value for _, name, value in rows if name == "train/samples_per_s"]
    speed = f"{statistics.median(speeds) / training.batch:.3g}" if speeds else "-"
    values = [value for _, name, value in rows if name == training.metric]
    if not values:
        return str(steps), speed, "none"
    best = f"{training.metric} {training.best(values):.4g}"
    return str(steps), speed, f"{best} (best of {len(values)})"


# ---- DDP -------------------------------------------------------------------------------------


def measure_ddp(processes: int, folder: Path, clock: Clock, *, tiny: bool) -> int:
    """Train the same batches without and with DDP and compare the weights; print a table.

    Args:
        processes: Number of processes, one per card.
        folder: Folder of the runs.
        clock: Time that is left.
        tiny: Whether to train a tiny network on the CPU.

    Returns:
        Number of rows that failed.
    """
    table = Table("DDP", "backend", "steps", "difference of the weights", "equal")
    sizes = TINY_MIXSTE if tiny else {"frames": 81, "dim": 256, "depth": 8, "heads": 8}
    net = {"class_path": "pipeline.lift.MixSTE", "init_args": sizes | {"drop_path": 0.0}}
    # Plain descent: AdamW would divide by the size of gradients, which enlarges rounding.
    descent = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}
    common = ["lift", "fit", "-c", "lift/mixste"]
    common += options(
        data__source=class_of("mocap.Synthetic", **FEW | {"seconds": 8.0}),
        data__step=3,
        model__net=net,
        model__optimizer=descent,
        model__overlap="once",
        trainer__max_steps=12,
        trainer__limit_train_batches=4,
        trainer__limit_val_batches=0,
        trainer__limit_test_batches=1,
        save_every=4,
        runs=str(folder),
    )
    common += ["--trainer.accelerator", "cpu"] if tiny else []
    one = options(name="one", data__batch_size=8 * processes, trainer__devices=1)
    ddp = options(name="ddp", data__batch_size=8, trainer__devices=processes)
    ddp += ["--trainer.strategy", "ddp"]
    title = f"{processes} process{'es' if processes > 1 else ''} against one without DDP"
    with table.attempt(title):
        run_heatlift([*common, *one], folder / "one.log", clock.left())
        printed, _ = run_heatlift([*common, *ddp], folder / "ddp.log", clock.left())
        difference = weights_difference(folder / "lift/one", folder / "lift/ddp", (8, 12))
        equal = difference <= WEIGHT_TOLERANCE
        table.failures += not equal
        backend = "gloo" if tiny else nccl_version(printed)
        table.add(title, backend, "12", f"{difference:.1e}", "yes" if equal else "NO")
    return table.failures


def weights_difference(one: Path, other: Path, steps: tuple[int, int]) -> float:
    """How far the last weights of two runs are apart, relative to the change since an earlier step.

    Args:
        one: Folder of the run whose change counts.
        other: Folder of the other run.
        steps: An earlier step and the last one; both have checkpoints.
    """
    before, last = (weights_at(one, step) for step in steps)
    return float((weights_at(other, steps[1]) - last).norm() / (last - before).norm())


def weights_at(run: Path, step: int) -> Tensor:
    """All weights of a run after a step, one vector, float64."""
    path = run / f"checkpoints/step-{step:09d}.ckpt"
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return torch.cat([value.double().flatten() for value in state.values()])


def nccl_version(printed: str) -> str:
    """Version of NCCL in what a run printed; NCCL prints it when the processes join."""
    found = re.search(r"NCCL version ([\w.+]+)", printed)
    return f"nccl {found[1]}" if found else "NCCL not seen"


# ---- the command -----------------------------------------------------------------------------


def print_heading(device: torch.device, command: str) -> float:
    """Print date, card, versions and command; return the peak that shares are relative to."""
    tiny = device.type == "cpu"
    name = "CPU" if tiny else torch.cuda.get_device_name(device)
    count = f"{torch.cuda.device_count()} x " if torch.cuda.device_count() > 1 else ""
    driver = "" if tiny else f", driver {driver_version()}, CUDA {torch.version.cuda}"
    rate = product_rate(device, 256 if tiny else 8192, 0.0 if tiny else 3.0)
    peak = data_sheet_peak(name)
    size = "256 x 256" if tiny else "8192 x 8192"
    source = "the product" if peak is None else "NVIDIA's data sheet"
    print(f"{time.strftime('%Y-%m-%d')}, {count}{name}{driver}, torch {torch.__version__}")
    print(f"\nCommand: `{command}`\n")
    print(
        f"Peak: {(peak or rate) / 1e12:.4g} TFLOP/s in bf16, from {source}; a product of two "
        f"matrices of {size} in bf16 reached {rate / 1e12:.4g} TFLOP/s.",
        flush=True,
    )
    return peak or rate


NOTES = """
Ratio: steps/s against the published form in 32-true. Share of peak: of bf16, also for 32-true, from
the products of the forward and backward pass. Difference: largest difference of outputs from the
published form in 32-true, relative to its largest output. Matrix products in 32-true do not use
TF32; convolutions do, which is torch's default. Steps use one batch again and again; the DataLoader
feeds the training if its batches/s are above the steps/s."""


def main() -> int:
    """Run the chosen parts and print their tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="All by default.")
    parser.add_argument(
        "--network",
        choices=tuple(OUTPUT_TOLERANCE),
        action="append",
        help="Networks of steps and train, all by default.",
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="Limit of the whole command.")
    parser.add_argument("--root", type=Path, help="Recordings of CMU; embedded people without.")
    parser.add_argument("--photos", type=Path, help="Photographs, as in docs/data.md; or none.")
    parser.add_argument("--tiny", action="store_true", help="Tiny networks on the CPU.")
    given = parser.parse_args()
    for name in ("root", "photos"):
        folder = getattr(given, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} {folder}: is no folder; give the one with the files")
    root, photos = (path and path.resolve() for path in (given.root, given.photos))
    if not given.tiny and not torch.cuda.is_available():
        print(
            f"gpu: torch {torch.__version__} finds no GPU here, so nothing is measured; --tiny "
            "tests the script on the CPU"
        )
        return 0
    clock, parts = Clock(given.minutes), given.part or PARTS
    keys = given.network or list(OUTPUT_TOLERANCE)
    tiny: bool = given.tiny
    device = torch.device("cpu" if tiny else "cuda")
    peak = print_heading(device, shlex.join(["python", *sys.argv]))
    failures = 0
    with tempfile.TemporaryDirectory(prefix="heatlift-gpu-") as name:
        folder = Path(name)
        if "steps" in parts:
            chosen = {key: found for key, found in networks(root, tiny=tiny).items() if key in keys}
            failures += measure_steps(chosen, device, clock, peak, seconds=0.0 if tiny else 5.0)
            print(NOTES, flush=True)
        if "train" in parts:
            all_trainings = trainings(root, photos, tiny=tiny)
            runs = [training for training in all_trainings if training.network in keys]
            reserve = 90.0 if "ddp" in parts else 0.0
            failures += train(runs, folder, clock, tiny=tiny, reserve=reserve)
        if "ddp" in parts:
            processes = 2 if tiny else torch.cuda.device_count()
            failures += measure_ddp(processes, folder, clock, tiny=tiny)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
