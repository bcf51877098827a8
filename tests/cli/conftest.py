"""Fixtures of the command line: a command that ends with one line of an error."""

from __future__ import annotations

import pytest
from runs import TINY

from pipeline.__main__ import main


@pytest.fixture
def run_with_error(tmp_path, monkeypatch, capsys):
    """Run `heatlift ARGUMENTS` in an empty folder; return the exit code and the error line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    for stage, text in TINY.items():
        (tmp_path / f"{stage}.yaml").write_text(text)

    def run(*arguments, config=None):
        if config is not None:
            (tmp_path / "x.yaml").write_text(config)
        code = main(list(arguments or ("lift", "fit", "-c", "x.yaml")))
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        assert err.startswith("heatlift: error: ")
        return code, err.removeprefix("heatlift: error: ").strip()

    return run
