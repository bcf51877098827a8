"""The pages of the documentation: their fenced blocks, the commands in them, and which are run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    r"make (demo|install|test|bench|soak|results)": "trains or tests for minutes to hours",
    r"ROOT=(path/to|folder/with)|-c data/mocap": "needs the recordings of CMU",
    r"heatlift weights get|pip (install|download)|npm pack": "needs a network",
    r"heatlift weights import FILE|model\.pretrained mixste\.ckpt": "needs published weights",
    r"heatlift lift test .*runs/lift/NAME/": "NAME stands for a run",
    r"../shared/data/photos": "needs the photographs that its table was measured on",
    r"benchmarks/gpu\.py": "measures for minutes where there is a GPU",
    r"sbatch|srun|--nnodes|--nproc_per_node 4": "needs a cluster",
    r"heatlift predict 0\b": "needs a camera",
}
"""Pattern of a command -> why it is not run. `test_readme.py` parses `heatlift` and `make`."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        line: Line of the page where its text begins.
        language: Word after the fence; empty if there is none.
        text: The text.
    """

    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """Name of the file that it is: the first line is a comment with that name alone."""
        found = re.match(r"# ([\w/]+\.\w+)\b", self.text)
        return found[1] if found and self.language in ("python", "yaml") else None

    @property
    def commands(self) -> list[str]:
        """Commands of a bash block, continued lines joined, as one list."""
        if self.language != "bash" or self.text.startswith("#!"):
            return []
        lines = [line.strip() for line in self.text.replace("\\\n", " ").splitlines()]
        return [line for line in lines if line and not line.startswith("#")]


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [
        Block(page.read_text().count("\n", 0, match.start(2)) + 1, match[1], match[2])
        for match in found
    ]


def reason_not_run(command: str) -> str | None:
    """Why a command is not run; None if it is run."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        number = 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found
