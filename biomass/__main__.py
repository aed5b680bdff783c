"""The command ``biomass``: the tools of :mod:`biomass.commands`, by name."""

import importlib
import os
import sys
from collections.abc import Sequence

from biomass import stopping
from biomass.commands import Tool, find_tools, plain
from biomass.errors import did_you_mean, printable, shortened


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool that the first argument names, or list all of them."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    tools = find_tools()
    if name in ("--help", "-h"):
        _print(_overview(tools))
        return
    if name not in [tool.name for tool in tools]:
        hint = did_you_mean(name, [tool.name for tool in tools])
        print(f"error: no tool '{shortened(printable(name))}'; {hint}", file=sys.stderr)
        raise SystemExit(2)
    try:
        os.getcwd()  # noqa: PTH109  # libraries end the process without a word of it, as they are imported
    except FileNotFoundError:
        raise SystemExit("error: the folder that this was started in is gone: go to another one") from None
    program = f"biomass {name}"
    tool = next(one for one in tools if one.name == name)
    with stopping.listening(goes_on=False, silent=tool.composed and stopping.rank() > 0):
        if not tool.composed:
            importlib.import_module(f"biomass.commands.{name}").main(rest)
            return
        answered = importlib.import_module("biomass.config").look_ahead(tool.file, program, rest, plain(tool.about))
        if not answered:
            importlib.import_module(f"biomass.commands.{name}").main(rest, program)


def _print(text: str) -> None:
    """Print, unless nobody reads on, as behind ``| head``."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end


def _overview(tools: Sequence[Tool]) -> str:
    width = max(len(tool.name) for tool in tools)
    lines = [f"  {tool.name:{width}}  {tool.summary}" for tool in tools]
    return "\n".join(
        [
            "usage: biomass <tool> …",
            "",
            "Tools, in the order in which a lab uses them:",
            *lines,
            "",
            "'biomass <tool> --help' explains one. Experiments are the scripts train_*.py and transfer_bbbc021.py.",
        ]
    )


if __name__ == "__main__":
    main()
