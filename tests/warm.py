"""What runs in the children of a warm forkserver: a command line, with its output in files."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import signal
import sys
import threading
import traceback


def run(words, folder, environment, faults, limits):
    """Be `heatlift WORDS` in a session and folder of its own, after calling what `faults` names."""
    os.setsid()
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
    sys.argv = ["heatlift", *words]
    code = 1
    try:
        _start_ranks_warm()
        _make_no_films()
        for fault in faults:
            _call(fault)
        from pipeline.__main__ import main

        code = main(words)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _call(fault):
    """Call `file.py:function` with the arguments that follow it."""
    place, *arguments = fault
    path, _, name = place.partition(":")
    spec = importlib.util.spec_from_file_location("faults", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    getattr(module, name)(*arguments)


class Forked:
    """A process of several, forked, not started: as `subprocess.Popen`, as far as it is used."""

    def __init__(self, words, environment):
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
                code = main(words)
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


def _start_ranks_warm():
    """The processes of a run on several devices need not import everything again."""
    from pipeline.training import processes

    if "HEATLIFT_COLD" not in os.environ:
        processes.start = Forked


def _make_no_films():
    """They take four fifths of a tiny run's time and are tested with the dashboards."""
    from pipeline.dashboard import panels

    panels.show_video = lambda *rest, **options: None


def save_for_ever(path):
    """Save checkpoints under one name until killed."""
    import torch

    from pipeline.training import checkpoints

    content = {"state_dict": {"w": torch.zeros(300_000)}}
    while True:
        content["state_dict"]["w"] += 1
        checkpoints.AtomicCheckpointIO().save_checkpoint(content, path)
