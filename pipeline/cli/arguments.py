"""Arguments of a command line as options with their values: parsed once, never rewritten."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from pipeline.errors import UsageError

FLAGS = ("-h", "--help", "--print_config", "--untrained", "--debug")
"""Options without a value."""


class CommandParser(argparse.ArgumentParser):
    """Parser of a plain command, and of its subcommands; a wrong argument is a `UsageError`.

    Its first argument is the program: `heatlift` and the name of the command.
    """

    def error(self, message: str) -> NoReturn:
        """Raise the error that argparse has found."""
        name = self.prog.split()[1]
        raise UsageError(f"{name}: {message}; see `heatlift {name} --help`")


class Argument(NamedTuple):
    """An option with its value, or a value alone.

    Args:
        option: Name with its dashes, such as `--data.step`; "" for a value alone.
        value: The value; None for a flag, or if it is missing.
        joined: Whether both stand in one word, `--option=value`.
    """

    option: str
    value: str | None = None
    joined: bool = False

    def words(self) -> list[str]:
        """The words of a command line that this is."""
        if self.joined:
            return [f"{self.option}={self.value}"]
        option = [self.option] if self.option else []
        return option if self.value is None else [*option, self.value]


def parse_arguments(words: Iterable[str]) -> list[Argument]:
    """Parse the words of a command line as argparse does.

    The word after an option is its value, unless it looks like an option itself. A word with spaces
    does not: `--also "-c data/mocap"` is one option with one value. After the word `--` there are
    no options.

    >>> parse_arguments(["fit", "-clift/demo", "--also", "--data.step 1", "--x=--y"])[1:3]
    [Argument(option='-c', value='lift/demo', joined=True), \
Argument(option='--also', value='--data.step 1', joined=False)]
    """
    parsed: list[Argument] = []
    ended = False
    for word in words:
        if ended or word == "--":  # only values follow
            ended = True
            parsed.append(Argument("", word))
            continue
        option, equals, value = word.partition("=")
        is_option = re.fullmatch(r"--?[^\W\d][^\s=]*", option) is not None
        last = parsed[-1] if parsed else Argument("", "")
        waiting = bool(last.option) and last.value is None and last.option not in FLAGS
        if waiting and (not is_option or re.search(r"\s", word)):
            parsed[-1] = Argument(last.option, word)
        elif re.match(r"-c.", word):
            parsed.append(Argument("-c", word[2:].removeprefix("="), joined=True))
        elif is_option:
            parsed.append(Argument(option, value if equals else None, joined=bool(equals)))
        else:
            parsed.append(Argument("", word))
    return parsed


def to_words(arguments: Iterable[Argument]) -> list[str]:
    """Words of a command line with these arguments."""
    return list(itertools.chain.from_iterable(argument.words() for argument in arguments))


def option_values(words: Sequence[str], *options: str) -> list[str]:
    """All values that options have on a command line, in order; a missing value is "".

    >>> option_values(["-c", "a", "--config=b", "--name", "-c x"], "-c", "--config")
    ['a', 'b']
    """
    return [found.value or "" for found in parse_arguments(words) if found.option in options]
