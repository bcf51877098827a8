"""Code for the children of the forkserver: runs a command line with its output in files."""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import os
import resource
import signal
import sys
import threading
import traceback


def run(arguments, folder, environment, faults, limits):
    """Run `heatlift ARGUMENTS` in a new session, in a folder, after calling the faults."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # workers of its own, in its session
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, number)
        os.close(file)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    sys.argv = ["heatlift", *arguments]
    code = 1
    try:
        _fork_ranks()
        _skip_videos()
        for fault in faults:
            _call(fault)
        from pipeline.__main__ import main

        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _call(fault):
    """Call a fault: `file.py:function`, then its arguments."""
    place, *arguments = fault
    path, _, name = place.partition(":")
    spec = importlib.util.spec_from_file_location("faults", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    getattr(module, name)(*arguments)


class ForkedRank:
    """A rank that is forked instead of started; has the used part of the API of `Popen`."""

    def __init__(self, arguments, environment):
        from pipeline.__main__ import main

        reading, writing = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(reading)
            os.dup2(writing, 2)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.environ.update(environment)
            from lightning.fabric.utilities.rank_zero import rank_zero_only

            rank_zero_only.rank = int(environment["LOCAL_RANK"])
            code = 1
            try:
                code = main(arguments)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        os.close(writing)
        self.stderr = os.fdopen(reading, errors="replace")
        self.returncode = None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self):
        while self.poll() is None:
            threading.Event().wait(0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _fork_ranks():
    """Fork the ranks of a run, so that they do not import everything again."""
    from pipeline.training import processes

    if "HEATLIFT_COLD" not in os.environ:
        processes.start_process = ForkedRank


def _skip_videos():
    """Write no videos: they take most of the time of a tiny run, and have their own tests."""
    from pipeline.dashboard import panels

    panels.log_video = lambda *rest, **options: None


def save_for_ever(path):
    """Save checkpoints to one path until the process is killed."""
    import torch

    from pipeline.training import checkpoints

    content = {"state_dict": {"w": torch.zeros(300_000)}}
    while True:
        content["state_dict"]["w"] += 1
        checkpoints.AtomicCheckpointIO().save_checkpoint(content, path)
