"""Training of a stage in a process of its own, whose lines are printed with a label."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

from pipeline.errors import HeatliftError
from pipeline.training.console import print_status
from pipeline.training.processes import (
    ERROR_PREFIX,
    LOST_CODE,
    PARENT_VARIABLE,
    StoppedBySignal,
    start_process,
)


class StageProcessError(HeatliftError):
    """A stage failed.

    Args:
        message: Label and error line of the stage.
        code: Its exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


class StageProcess:
    """A stage that trains in a process of its own; it ends when this process ends.

    Args:
        label: Label of its lines, such as `2D stage`.
        arguments: Command line without the name of the program.
        threads: Number of threads that it computes with, unless `OMP_NUM_THREADS` is set.
        width: Width of the longest label.
    """

    def __init__(self, label: str, arguments: Sequence[str], threads: int, width: int) -> None:
        self.label = label
        self.error = ""  # its error line
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        environment[PARENT_VARIABLE] = str(os.getpid())
        self._process = start_process(arguments, environment, stdout=subprocess.PIPE)
        streams = ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
        self._readers = [
            threading.Thread(
                target=self._forward, args=(*pair, f"{label:<{width}} | "), daemon=True
            )
            for pair in streams
        ]
        for reader in self._readers:
            reader.start()

    def is_running(self) -> bool:
        """Whether the stage is still training."""
        return self._process.poll() is None

    def check(self) -> None:
        """Raise an error if the stage, which has ended, failed.

        Raises:
            StageProcessError: If its exit code is not 0.
        """
        self.wait()
        code = self._process.returncode
        if code < 0:
            reason = f"died by signal {-code} (out of memory?)"
            raise StageProcessError(
                f"{self.label}: {reason}; run the same command again", LOST_CODE
            )
        if code:
            reason = self.error or f"ended with exit code {code}"
            raise StageProcessError(f"{self.label}: {reason}", code)

    def wait(self) -> None:
        """Wait until the stage has ended, and all that it printed is forwarded."""
        self._process.wait()
        for reader in self._readers:
            reader.join(2.0)

    def send_signal(self, number: int) -> None:
        """Send a signal; a stop signal lets the stage save a checkpoint and end."""
        self._process.send_signal(number)

    def _forward(self, stream: IO[str], target: IO[str], label: str) -> None:
        """Print the lines of a stream with the label, but keep the line of an error."""
        with stream:
            for line in stream:
                if line.startswith(ERROR_PREFIX):
                    self.error = line.removeprefix(ERROR_PREFIX).strip()
                else:
                    target.write(label + line)
                    target.flush()


def end_all(processes: Sequence[StageProcess], number: int) -> None:
    """Stop stages that are training, and print what they have saved.

    A further signal to this process goes to all of them: two that come at once are taken as one,
    a later one stops them without a checkpoint.

    Args:
        processes: The stages.
        number: Stop signal that they get.
    """
    for process in processes:
        process.send_signal(number)
    while any(process.is_running() for process in processes):
        try:
            for process in processes:
                process.wait()
        except StoppedBySignal as stop:
            for process in processes:
                process.send_signal(stop.exit_code - 128)
    for process in processes:
        if process.error:
            print_status(f"{process.label}: {process.error}")
