"""Writes the manuals that are made from the code: `make docs`.

docs/settings.md from the annotations and docstrings of `microos/settings.py`, docs/cli.md
from the commands themselves. `tests/test_docs.py` fails when they are not current.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from microos.cli.commands import cli
from microos.cli.node import parser
from microos.fields import at, kinds
from microos.settings import Settings

DOCS = Path(__file__).parent

SETTINGS = """\
# Settings

Made from `microos/settings.py` by `make docs`; do not edit.

A node is told how to run once, at its start, and refuses to start while anything is wrong,
naming every fault at once. Later sources win:

    preset  <  microos.toml  <  MICROOS_* environment  <  arguments

- `preset` is `local`, `lan` or `wan`; without it `local` while bound to loopback, else `lan`.
- `microos.toml` is read from the working directory; `--settings FILE` names another.
- `MICROOS_BIND`, `MICROOS_RAFT__VOTERS`, ...: upper case, two underscores after a section,
  lists joined by commas.
- In Python: `Settings.load(...)`, `Settings.local(...)`, `Settings.lan(...)`, `Settings.wan(...)`.

## Every setting

The values below are those of the preset `lan`. `microos-node --print-settings` prints this text
with the values a node would have here and now; it can be used as a `microos.toml`.

```toml
{explained}```

## What the presets change

{presets}
"""

COMMANDS = """\
# Command line

Made from `microos/cli` by `make docs`; do not edit. `microos` needs `pip install "microos[cli]"`.

Exit codes: 0 done, 2 wrong usage or settings, 3 unavailable (nothing happened, try again),
4 uncertain (it may have happened), 5 rejected (the answer is no), 1 anything else. An error is
one line on standard error; data (`--json`) is on standard output, one JSON per line.

{commands}
"""


def settings_manual() -> str:
    """Return docs/settings.md."""
    return SETTINGS.format(explained=Settings.lan().explain(), presets=table_of_presets())


def table_of_presets() -> str:
    """Return the settings that differ between presets, as a Markdown table."""
    presets = {"local": Settings.local(), "lan": Settings.lan(), "wan": Settings.wan()}
    lines = [f"| setting | {' | '.join(presets)} |", f"|---|{'---|' * len(presets)}"]
    for name in kinds(Settings):
        values = [str(at(preset, name)) for preset in presets.values()]
        if len(set(values)) > 1:
            lines.append(f"| `{name}` | {' | '.join(values)} |")
    return "\n".join(lines)


def command_manual() -> str:
    """Return docs/cli.md."""
    sections = ["## microos-node", *node_section(), *command_sections("microos", cli)]
    return COMMANDS.format(commands="\n\n".join(sections))


def node_section() -> Iterator[str]:
    """Yield what `microos-node --help` says."""
    node = parser()
    yield node.description or ""
    options = [
        (" ".join([*action.option_strings, metavar(action)]).strip(), action.help or "")
        for action in node._actions
    ]
    yield table(options)
    yield f"```text\n{node.epilog}```"


def metavar(action: argparse.Action) -> str:
    """Return what stands for the value of an option; nothing for a switch."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "/".join(str(choice) for choice in action.choices)
    return str(action.metavar or action.dest.upper())


def command_sections(name: str, command: click.Command) -> Iterator[str]:
    """Yield a heading, the text and the options of a command, then of each beneath it."""
    places = [p.make_metavar(click.Context(command)) for p in command.params if is_argument(p)]
    yield f"## {' '.join([name, *places])}"
    yield "\n\n".join(paragraphs(inspect.cleandoc(command.help or "")))
    options = [option for p in command.params if (option := option_of(p)) is not None]
    if options:
        yield table(options)
    if isinstance(command, click.Group):
        for each in sorted(command.commands):
            yield from command_sections(f"{name} {each}", command.commands[each])


def is_argument(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Argument)


def option_of(parameter: click.Parameter) -> tuple[str, str] | None:
    """Return (how to write it, what it does) of an option."""
    if not isinstance(parameter, click.Option) or parameter.help is None:
        return None
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type.name.upper()}"
    shown = parameter.show_default and parameter.default is not None
    default = f" Default {parameter.default}." if shown else ""
    return f"{' '.join(parameter.opts)}{value}", f"{parameter.help}{default}"


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; those click must not wrap become code."""
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("\b"):
            yield "```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```"
        else:
            yield paragraph


def table(rows: list[tuple[str, str]]) -> str:
    """Return options as a Markdown table."""
    lines = [f"| `{what}` | {does.replace('|', '/')} |" for what, does in rows]
    return "\n".join(["| option | |", "|---|---|", *lines])


MANUALS = {"settings.md": settings_manual, "cli.md": command_manual}


def main() -> None:
    """Write them."""
    for name, text in MANUALS.items():
        (DOCS / name).write_text(text(), encoding="utf-8")
        sys.stdout.write(f"docs/{name}\n")


if __name__ == "__main__":
    main()
