"""W&B that cannot stop a run: online, offline or off, decided before the first call."""

from __future__ import annotations

import atexit
import contextlib
import logging
import netrc
import os
import re
import socket
import threading
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pipeline.dashboard.catalog import Metric
from pipeline.errors import UsageError
from pipeline.files import writing
from pipeline.training.console import print_line

_log = logging.getLogger(__name__)

_PROJECT = "heatlift"
_PROBE_S = 3.0
_INIT_S = 6.0
_ANSWER_S = 6.0
# Waited for at the end of a run; with the probe and the start, or with an answer that never comes,
# this stays below 15 s in all.
_FINISH_S = 5.0
_failed: set[str] = set()
"""Servers that a run of this process gave up on; the next stage of a chain does not wait again."""

_SECRET = re.compile(r"(?i)(^|_|-)(api_?key|key|token|secret|password|passwd|credentials?)$")
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def make_wandb_loggers(
    folder: Path,
    *,
    stage: str,
    name: str,
    group: str,
    config: Mapping[str, Any],
    wandb_mode: str = "auto",
) -> list[Logger]:
    """The W&B logger of a run, or none.

    Args:
        folder: Of the run; everything W&B writes goes under it.
        stage: Which stage this is; becomes the job type.
        name: Of the run within its stage.
        group: What the stages of one chain share.
        config: Settings of the run; entries that look like secrets are left out.
        wandb_mode: `auto` and `online` log online where a key is there and the server answers
            within 3 s, else offline; `online` warns where there is no key; `offline`; `off`.

    Returns:
        At most one logger. It never raises; its first failure is its last call.

    Raises:
        UsageError: If there is no such mode.
    """
    if wandb_mode not in ("auto", "online", "offline", "off"):
        raise UsageError(f"WANDB={wandb_mode}: no such mode; take auto, online, offline or off")
    if wandb_mode in ("auto", "online") and os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        wandb_mode = {"offline": "offline", "disabled": "off"}[os.environ["WANDB_MODE"]]
    if wandb_mode == "off":
        return []
    online = (
        wandb_mode != "offline"
        and getattr(rank_zero_only, "rank", 0) == 0
        and _can_go_online(must=wandb_mode == "online")
    )
    facts = {"stage": stage, "name": name, "group": group, "config": _plain(config)}
    return [ResilientWandbLogger(Path(folder), mode="online" if online else "offline", **facts)]


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _can_go_online(*, must: bool) -> bool:
    url = urllib.parse.urlsplit(_server())
    if not _has_key(url.hostname or ""):
        if must:
            _log.warning("W&B: no API key (WANDB_API_KEY or netrc); logging offline")
        return False
    if _server() in _failed or not _answers(url):
        _log.warning(
            "W&B: %s does not answer within %.0f s; logging offline", url.hostname, _PROBE_S
        )
        return False
    return True


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            entry = netrc.netrc(str(path)).authenticators(host)
            if entry is not None and entry[2]:
                return True
    return False


def _answers(url: urllib.parse.SplitResult) -> bool:
    """Whether the server, or the proxy on the way to it, accepts a connection."""
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    reached = threading.Event()

    def probe() -> None:
        with contextlib.suppress(OSError, ValueError):
            port = url.port or {"https": 443}.get(url.scheme, 80)
            socket.create_connection((url.hostname or "", port), timeout=_PROBE_S).close()
            reached.set()

    # Looking up a name has no timeout of its own, so it is the thread that is given up.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    return reached.is_set()


def _plain(value: Any) -> Any:
    """Settings as JSON has them, without what looks like a secret."""
    if isinstance(value, Mapping):
        return {
            str(key): _plain(entry) for key, entry in value.items() if not _SECRET.search(str(key))
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = _USER_IN_URL.sub("", str(value))
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text


class ResilientWandbLogger(Logger):
    """A W&B run that cannot hurt the run it logs: one failure, one warning, and it is switched off.

    The W&B run starts at the first call, on rank zero only, and ends in `finish`, which the process
    calls at its end if nobody else does; not in `finalize`, so that `test` after `fit` logs too.

    Args:
        folder: Of the run; W&B writes to `folder/wandb`.
        mode: Online sends as it goes; offline writes files that `wandb sync` sends later.
        stage: Becomes the job type.
        name: Of the run.
        group: What the stages of one chain share.
        config: Plain settings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["online", "offline"],
        stage: str,
        name: str,
        group: str,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.folder, self.mode, self.stage, self.group, self.config = (
            folder,
            mode,
            stage,
            group,
            config,
        )
        self._name = name
        self._run: Any = None
        self._off = False

    @property
    def name(self) -> str:
        """Of the run."""
        return self._name

    @property
    def version(self) -> str:
        """Always empty: the run folder already tells runs apart."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.folder)

    @property
    def experiment(self) -> Any:
        """The W&B run; none off rank zero and after a failure."""
        self.attempt(lambda run: None)
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers at a step of the trainer."""
        at = {} if step is None else {"trainer/global_step": step}
        self.attempt(lambda run: run.log({**metrics, **at}))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the settings that the run shows."""
        plain = _plain(params if isinstance(params, Mapping) else vars(params))
        self.attempt(lambda run: run.config.update(plain, allow_val_change=True))

    @rank_zero_only
    def declare(self, metrics: Iterable[Metric]) -> None:
        """Tell W&B which way each number is better, and that the trainer's step is the x axis."""

        def define(run: Any) -> None:
            run.define_metric("trainer/global_step")
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            for metric in metrics:
                run.define_metric(
                    metric.name,
                    step_metric="trainer/global_step",
                    step_sync=True,
                    summary=metric.goal or "last",
                )

        self.attempt(define)

    @rank_zero_only
    def attempt(self, act: Callable[[Any], Any]) -> None:
        """Do something with the W&B run; whatever goes wrong ends W&B, not the training."""
        if self._off:
            return
        try:
            if self._run is None:
                self._run = self._start()
            if self.mode == "online":
                _within(_ANSWER_S, act, self._run)
            else:
                act(self._run)
        except Exception as error:
            self._off, self._run = True, None
            if self.mode == "online":
                _failed.add(_server())
                _let_go()
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _log.warning("W&B: %s; this run goes on without it (numbers: metrics.csv)", reason)

    def _start(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):  # else it writes into the home folder
            os.environ.setdefault(name, str((self.folder / "wandb" / "cache").absolute()))
        # W&B's reports on itself are sent at exit, and wait 10 s and more for a slow server.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        # What it cannot write into its own log on a full disk would be a traceback on the terminal.
        logging.raiseExceptions = False
        # The process of another program's W&B may work in another folder, and ends with that.
        os.environ.pop("WANDB_SERVICE", None)
        import wandb

        wanted = {
            "init_timeout": _INIT_S,
            "finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", _FINISH_S)),
            "finish_timeout_raises": True,
            "silent": True,
            "console": "off",
            "disable_git": True,  # remotes may carry a password
            "disable_job_creation": True,
            "save_code": False,
        }
        known = wandb.Settings.model_fields
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=str(self.folder.absolute()),
            id=self._identity(),
            resume="allow" if self.mode == "online" else None,
            name=f"{self.stage}/{self._name}",
            group=self.group,
            job_type=self.stage,
            mode=self.mode,
            config=self.config,
            reinit="create_new",
            settings={key: value for key, value in wanted.items() if key in known},
        )
        atexit.register(self.finish)
        if self.mode == "online":
            print_line(f"W&B: {run.url}")
        return run

    def _identity(self) -> str:
        """The W&B name of this run folder, the same after a resume."""
        path = self.folder / "wandb" / "id"
        if not path.exists():
            with writing.atomic_path(path) as temporary:
                temporary.write_text(uuid.uuid4().hex[:12])
        return path.read_text().strip()

    @rank_zero_only
    def finish(self) -> None:
        """End the W&B run, within seconds; an offline one prints the line that sends it later."""
        atexit.unregister(self.finish)
        run = self._run
        if run is None or self._off:
            return
        kept = Path(getattr(run.settings, "sync_dir", "") or self.folder / "wandb")
        send = f"`wandb sync {kept}` sends it"
        try:
            run.finish()
            if self.mode == "offline":
                print_line(f"  W&B        logged offline; {send}")
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _log.warning("W&B: could not finish (%s); %s", reason, send)
            if self.mode == "online":
                _let_go()
        self._off, self._run = True, None


def _within(seconds: float, act: Callable[[Any], Any], run: Any) -> None:
    """Do something with a W&B run in a thread that is left behind when it takes longer.

    Some calls, a table's for one, ask the server and retry for as long as it is away.
    """
    raised: list[Exception] = []

    def do() -> None:
        try:
            act(run)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if raised:
        raise raised[0]


def _let_go() -> None:
    """End W&B's own process without waiting for what it still wants to send."""
    import wandb

    def teardown() -> None:
        with contextlib.suppress(Exception):
            wandb.teardown()

    # It takes its hook at exit away first, and then waits for the server: that is left behind.
    thread = threading.Thread(target=teardown, daemon=True)
    thread.start()
    thread.join(1.0)
