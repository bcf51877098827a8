"""Every command in README, the other pages and the Makefile works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pages
import pytest

from pipeline.__main__ import COMMANDS, STAGES, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md")]
PAGES = [page for page in PAGES if page.exists()] + sorted((ROOT / "docs").glob("*.md"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z]+) \??=", MAKEFILE, re.MULTILINE)) | {"CONFIG"}
PROMISED = re.findall(
    r"\S+",
    "help install demo heatmap detect pretrain lift results test test-all soak bench lint docs "
    "notebooks clean",
)
PROGRAMS = (
    *("make", "heatlift", ".venv/bin/heatlift", "torchrun", "srun", "python", ".venv/bin/python"),
)


def blocks(text):
    """Shell lines of a page's code blocks, continued lines joined."""
    for kind, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
        if kind in ("", "bash", "sh", "console"):
            yield from block.replace("\\\n", " ").splitlines()


def commands():
    """(page, words) of every command on the pages, in code blocks and in lines of text."""
    for page in PAGES:
        text = page.read_text()
        spans = re.findall(r"(?<!`)`((?:make|heatlift) [^`\n]+)`", text)
        for line in [*blocks(text), *spans]:
            if not line.strip().startswith(PROGRAMS) and "=" not in line.split(" ")[0]:
                continue
            for part in re.split(r"&&|\|\|?|;", line):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words and words[0] in PROGRAMS:
                    yield page.name, tuple(words)


TYPED = sorted(set(commands()))
OF_MAKE = [(page, words) for page, words in TYPED if words[0] == "make"]


def heatlift_words(words):
    """Arguments of `heatlift`, with any way to start it; None for other programs."""
    for place, word in enumerate(words):  # also after torchrun or srun
        if word.endswith("heatlift"):
            return list(words[place + 1 :])
    if "pipeline" in words:
        return list(words[words.index("pipeline") + 1 :])
    return None


OF_HEATLIFT = [(page, words) for page, words in TYPED if heatlift_words(words)]


def ids(pairs):
    return [f"{page}: {' '.join(words)}" for page, words in pairs]


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty folder with the files that the pages have as blocks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in (block for page in pages.PAGES for block in pages.read_blocks(page)):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
            monkeypatch.delitem(sys.modules, Path(block.file).stem, raising=False)


def test_readme_has_commands():
    pages = {page for page, _ in TYPED}
    assert "README.md" in pages
    assert len(OF_HEATLIFT) >= 5
    assert len(OF_MAKE) >= 5


@pytest.mark.parametrize(("page", "words"), OF_MAKE, ids=ids(OF_MAKE))
def test_make_has_the_targets_and_variables_that_pages_use(page, words):
    for word in words[1:]:
        name, is_variable, _ = word.partition("=")
        assert name in (VARIABLES if is_variable else TARGETS | {"TARGET", "-n", "-j"})


@pytest.mark.parametrize(("page", "words"), OF_HEATLIFT, ids=ids(OF_HEATLIFT))
@pytest.mark.usefixtures("nowhere")
def test_heatlift_accepts_the_commands_of_the_pages(page, words, capsys):
    command, *rest = [word for word in heatlift_words(words) if word not in ("…", "...")]
    if command.startswith("-") or command in ("STAGE", "COMMAND"):
        return
    assert command in {**STAGES, **COMMANDS}
    if command in STAGES and rest and rest[0] in ("fit", "validate", "test", "predict"):
        code = main([command, *rest, "--print_config"])
    else:
        inner = COMMANDS[command].functions
        chosen = (
            rest[:1]
            if command == "runs" or (isinstance(inner, dict) and rest[:1] in [[n] for n in inner])
            else []
        )
        code = main([command, *chosen, "--help"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    if command not in STAGES:
        for option in (word.partition("=")[0] for word in rest if word.startswith("--")):
            assert option == "--import" or option.split(".")[0] in printed.out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_to_files_that_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_that_pages_name_exist(page):
    for script in re.findall(r"\b(?:benchmarks|docs)/\w+\.py\b", page.read_text()):
        assert (ROOT / script).exists(), f"{page.name} names {script}"


# ---- the Makefile ------------------------------------------------------------------------------


def make(*words):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *words],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_targets_are_those_of_the_plan():
    assert set(PROMISED) <= TARGETS
    assert set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()) == TARGETS


def test_help_prints_every_target_and_its_purpose():
    printed = make("help").stdout
    for target in TARGETS:
        assert re.search(rf"^  {target}\s+[A-Z]", printed, re.MULTILINE), target


@pytest.mark.parametrize("target", PROMISED)
def test_every_target_can_be_planned(target):
    planned = make("-n", target, "DETECTIONS=exact")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.strip()


def test_make_lift_is_one_command_that_checks_first():
    planned = make("-n", "lift", "DATA=human36m", "ROOT=folder", "DETECTOR=best.ckpt").stdout
    (line,) = [line for line in planned.replace("\\\n", "").splitlines() if "heatlift" in line]
    words = shlex.split(line)
    assert words[1] == "chain"
    assert words[words.index("--detections") + 1] == "best.ckpt"


def test_readme_names_the_variables_of_the_makefile():
    table = re.search(r"\| variable \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    named = set(re.findall(r"`([A-Z]+)=`", table))
    assert named == VARIABLES - {"SHELL", "PYTHON", "VENV", "HEATLIFT", "PYTEST"}
