"""W&B that cannot stop a run: online, offline or off, decided before the first call."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import netrc
import os
import re
import shlex
import socket
import threading
import unicodedata
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pipeline.dashboard.catalog import Metric
from pipeline.errors import UsageError, mask_secrets, printable
from pipeline.files import writing
from pipeline.training.console import print_line

_log = logging.getLogger(__name__)

WANDB_MODES = ("auto", "online", "offline", "off")
"""Values of `--wandb`."""

_PROJECT = "heatlift"
_PROBE_TIMEOUT_S = 3.0
_INIT_TIMEOUT_S = 6.0
_CALL_TIMEOUT_S = 6.0
# The waits of one run (probe, start, one call or the end) add up to less than 15 s.
_FINISH_TIMEOUT_S = 5.0
_failed_servers: set[str] = set()
"""Servers that did not answer a run of this process; later stages of the chain skip the wait."""

_SECRET = re.compile(r"(?i)(^|_|-)(api_?key|key|token|secret|password|passwd|credentials?)$")


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
        folder: Run folder; W&B writes its files below it.
        stage: Name of the stage, used as the job type.
        name: Name of the run within its stage.
        group: W&B group; the stages of one chain have the same.
        config: Settings of the run; entries that look like secrets are left out.
        wandb_mode: `auto` and `online` log online if there is an API key and the server answers
            within 3 s, else offline; `online` also warns if there is no key; `offline`; `off`.

    Returns:
        At most one logger. It never raises: after its first failure it is switched off.

    Raises:
        UsageError: If the mode is unknown.
    """
    if wandb_mode not in WANDB_MODES:
        raise UsageError(f"WANDB={wandb_mode}: no such mode; take auto, online, offline or off")
    if wandb_mode in ("auto", "online") and os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        wandb_mode = {"offline": "offline", "disabled": "off"}[os.environ["WANDB_MODE"]]
    if wandb_mode == "off":
        return []
    online = (
        wandb_mode != "offline"
        and getattr(rank_zero_only, "rank", 0) == 0
        and _can_go_online(warn_without_key=wandb_mode == "online")
    )
    facts = {"stage": stage, "name": name, "group": group, "config": _without_secrets(config)}
    return [ResilientWandbLogger(Path(folder), mode="online" if online else "offline", **facts)]


def _server_url() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _can_go_online(*, warn_without_key: bool) -> bool:
    """Whether there is an API key and the server answers; the reason is logged if it does not."""
    url = urllib.parse.urlsplit(_server_url())
    if not _has_api_key(url.hostname or ""):
        if warn_without_key:
            _log.warning("W&B: no API key (WANDB_API_KEY or netrc); logging offline")
        return False
    if _server_url() in _failed_servers or not _server_answers(url):
        _log.warning(
            "W&B: %s does not answer within %.0f s; logging offline", url.hostname, _PROBE_TIMEOUT_S
        )
        return False
    return True


def _has_api_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            entry = netrc.netrc(str(path)).authenticators(host)
            if entry is not None and entry[2]:
                return True
    return False


def _server_answers(url: urllib.parse.SplitResult) -> bool:
    """Whether the server, or the proxy on the way to it, accepts a connection."""
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    reached = threading.Event()

    def probe() -> None:
        with contextlib.suppress(OSError, ValueError):
            port = url.port or {"https": 443}.get(url.scheme, 80)
            socket.create_connection((url.hostname or "", port), timeout=_PROBE_TIMEOUT_S).close()
            reached.set()

    # A DNS lookup has no timeout of its own, so it runs in a thread that may be abandoned.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_TIMEOUT_S)
    return reached.is_set()


def _without_secrets(value: Any) -> Any:
    """Settings as plain JSON values, without entries that look like secrets."""
    if isinstance(value, Mapping):
        return {
            str(key): _without_secrets(entry)
            for key, entry in value.items()
            if not _SECRET.search(str(key))
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_without_secrets(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = mask_secrets(str(value))
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text


class ResilientWandbLogger(Logger):
    """A logger for W&B that switches itself off, with one warning, at the first failure.

    The W&B run starts at the first call, on rank zero only. It ends in `finish`, which is also
    called when the process exits; not in `finalize`, so that `test` after `fit` logs too.

    Args:
        folder: Run folder; W&B writes to `folder/wandb`.
        mode: `online` sends at once; `offline` writes files that `wandb sync` sends later.
        stage: Name of the stage, used as the job type.
        name: Name of the run.
        group: W&B group; the stages of one chain have the same.
        config: Plain settings of the run.
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
        """Name of the run."""
        return self._name

    @property
    def version(self) -> str:
        """Always empty: the run folder identifies the run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.folder)

    @property
    def experiment(self) -> Any:
        """The W&B run; None on other ranks and after a failure."""
        self.attempt(lambda run: None)
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers at a step of the trainer."""
        at = {} if step is None else {"trainer/global_step": step}
        named = {printable(name): value for name, value in metrics.items()}
        self.attempt(lambda run: run.log({**named, **at}))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the settings of the W&B run."""
        plain = _without_secrets(params if isinstance(params, Mapping) else vars(params))
        self.attempt(lambda run: run.config.update(plain, allow_val_change=True))

    @rank_zero_only
    def declare(self, metrics: Iterable[Metric]) -> None:
        """Define each metric in W&B: lower or higher is better, x axis is the trainer's step."""

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
        """Call a function with the W&B run; an exception switches W&B off and training goes on."""
        if self._off:
            return
        try:
            if self._run is None:
                self._run = self._start()
            if self.mode == "online":
                _call_with_timeout(_CALL_TIMEOUT_S, act, self._run)
            else:
                act(self._run)
        except Exception as error:
            self._off, self._run = True, None
            if self.mode == "online":
                _failed_servers.add(_server_url())
                _abandon_wandb_process()
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _log.warning("W&B: %s; this run goes on without it (numbers: metrics.csv)", reason)

    def _start(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):  # the default is the home folder
            os.environ.setdefault(name, str((self.folder / "wandb" / "cache").absolute()))
        # W&B sends error reports at exit; with a slow server that takes 10 s and more.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        # On a full disk W&B's own log fails; logging would print a traceback for each record.
        logging.raiseExceptions = False
        # An inherited W&B service belongs to another program, and ends with it.
        os.environ.pop("WANDB_SERVICE", None)
        import wandb

        settings = {
            "init_timeout": _INIT_TIMEOUT_S,
            "finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", _FINISH_TIMEOUT_S)),
            "finish_timeout_raises": True,
            "silent": True,
            "console": "off",
            "disable_git": True,  # remotes may carry a password
            "disable_job_creation": True,
            "save_code": False,
        }
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=str(self.folder.absolute()),
            id=self._wandb_id(),
            resume="allow" if self.mode == "online" else None,
            name=printable(f"{self.stage}/{self._name}"),
            group=printable(self.group) if self.group else self.group,
            job_type=self.stage,
            mode=self.mode,
            config=self.config,
            reinit="create_new",
            settings=settings,
        )
        atexit.register(self.finish)
        if self.mode == "online":
            print_line(f"W&B: {run.url}")
        return run

    def _wandb_id(self) -> str:
        """The W&B id of this run folder, the same after a resume."""
        path = self.folder / "wandb" / "id"
        if not path.exists():
            with writing.atomic_path(path) as temporary:
                temporary.write_text(uuid.uuid4().hex[:12])
        return path.read_text().strip()

    @rank_zero_only
    def finish(self) -> None:
        """End the W&B run within seconds; offline, print the command that sends it later."""
        atexit.unregister(self.finish)
        run = self._run
        if run is None or self._off:
            return
        parts = offline_parts(self.folder) if self.mode == "offline" else []
        files = parts or [Path(getattr(run.settings, "sync_dir", "") or self.folder / "wandb")]
        send = f"`wandb sync {shlex.join(map(str, files))}` sends it"
        try:
            run.finish()
            if self.mode == "offline":
                print_line(f"  W&B        logged offline; {send}")
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _log.warning("W&B: could not finish (%s); %s", reason, send)
            if self.mode == "online":
                _abandon_wandb_process()
        self._off, self._run = True, None


def offline_parts(folder: Path) -> list[Path]:
    """Folders of all parts of a run that was logged offline, oldest first.

    Each start of a run has a part of its own: one more after each resume.

    Args:
        folder: Run folder.
    """
    parts = (folder.absolute() / "wandb").glob("offline-run-*")
    return sorted((path for path in parts if path.is_dir()), key=lambda path: path.name)


def artifact_name(name: str, kind: str) -> str:
    """Name of an artifact, of the characters that W&B allows: letters, digits, `-`, `_` and `.`.

    A changed name gets a digest of the original, so that two names stay two artifacts.

    Args:
        name: Name of the run, with any characters.
        kind: Kind of the artifact.

    >>> artifact_name("mixste_small", "checkpoint")
    'mixste_small-checkpoint'
    >>> artifact_name("größe 2", "checkpoint")
    'gro-e-2-6b17f5-checkpoint'
    """
    letters = [c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c)]
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", "".join(letters)).strip("-.")[:80]
    if plain != name:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:6]
        plain = f"{plain or 'run'}-{digest}"
    return f"{plain}-{kind}"


def _call_with_timeout(seconds: float, act: Callable[[Any], Any], run: Any) -> None:
    """Call a function with a W&B run in a thread that is abandoned after the timeout.

    Some calls, such as logging a table, retry as long as the server does not answer.

    Raises:
        TimeoutError: If the call takes longer than `seconds`.
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


def _abandon_wandb_process() -> None:
    """Stop the W&B service process without waiting for its uploads."""
    import wandb

    def teardown() -> None:
        with contextlib.suppress(Exception):
            wandb.teardown()

    # `teardown` first removes its exit hook, then waits for the server; that wait is abandoned.
    thread = threading.Thread(target=teardown, daemon=True)
    thread.start()
    thread.join(1.0)
