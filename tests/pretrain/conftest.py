import warnings
from collections.abc import Iterator

import lightning.pytorch as pl
import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Small networks are faster so, and two test processes do not fight for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trainer(tmp_path):
    """Makes Trainers that write nothing and say nothing."""

    def make(**changes) -> pl.Trainer:
        settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        settings |= {"accelerator": "cpu", "devices": 1, "enable_model_summary": False}
        settings |= {"default_root_dir": tmp_path, "use_distributed_sampler": False}
        return pl.Trainer(**settings | changes)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*sync_dist=True")
        yield make
