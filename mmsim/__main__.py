"""``python3 -m mmsim``: the simulated machine in a terminal, for those who prefer one. Plain text; ``--help`` everywhere.

    python3 -m mmsim boot toy16                     the kernel log of a boot
    python3 -m mmsim buddyinfo --machine big64      a file of /proc
    python3 -m mmsim figure buddy-board             a figure of the book in words
    python3 -m mmsim lab script.txt                 a script of system calls and accesses, step by step
    python3 -m mmsim maps script.txt                /proc/PID/maps of its processes afterwards
    python3 -m mmsim exercise 5.3 375 500           the answers to an exercise of the book
    python3 -m mmsim replay tests/golden            recordings against the model

Exit status: 0 done; 1 what was asked for failed (a kernel panic, a replay that disagrees, a wrong answer); 2 the command cannot
be used so.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mmsim.figures
from mmsim.draw.figure import BoundFigure, Figure, figures
from mmsim.errors import InputError, KernelPanic
from mmsim.exercises import Session, exercises, find
from mmsim.lab import Lab, LabError
from mmsim.machine import Machine
from mmsim.procfs.maps import maps
from mmsim.reference import REFERENCE_MACHINES, reference
from mmsim.replay.__main__ import main as replay

__all__ = ["main"]

#: Files of /proc that are commands of their own.
PROC_FILES = ("buddyinfo", "meminfo", "pagetypeinfo", "slabinfo", "vmallocinfo", "vmstat", "zoneinfo")


def _machine(options: argparse.Namespace) -> Machine:
    """The machine that the options name: a reference machine, or one with the firmware map of a kernel log."""
    name: str = options.machine
    if name in REFERENCE_MACHINES:
        return reference(name, options.cmdline)
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{name} is neither a reference machine ({', '.join(REFERENCE_MACHINES)}) nor a file with a kernel log")
    return Machine.boot(path.read_text(encoding="utf-8", errors="replace"), options.cmdline or "")


def _boot(options: argparse.Namespace) -> int:
    print("\n".join(_machine(options).dmesg_lines()))
    return 0


def _proc(options: argparse.Namespace) -> int:
    print(_machine(options).proc(options.file), end="")
    return 0


def _all_figures() -> dict[str, Figure]:
    """Every figure of the book under the name that its address has in a page: ``buddy-board`` for ``#fig-buddy-board``."""
    for module in pkgutil.walk_packages(mmsim.figures.__path__, "mmsim.figures."):
        importlib.import_module(module.name)
    return {figure.identity.removeprefix("fig-"): figure for figure in figures()}


def _bound(figure: Figure, settings: Sequence[str]) -> BoundFigure:
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"{setting!r} is no NAME=VALUE")
        values[name] = text
    return figure.bind(values)


def _figure(options: argparse.Namespace) -> int:
    known = _all_figures()
    if options.name is None:
        width = max(map(len, known))
        print("\n".join(f"{name:{width}}  {figure.title}" for name, figure in known.items()))
        return 0
    name = options.name.removeprefix("#").removeprefix("fig-")
    if name not in known:
        raise InputError(f"there is no figure {name}; 'python3 -m mmsim figure' lists them")
    bound = _bound(known[name], options.set)
    if options.svg is None:
        print(bound.words())
        return 0
    count = len(bound.frames())
    if not 1 <= options.frame <= count:
        raise InputError(f"{name} has frames 1 to {count}")
    options.svg.write_text(bound.svg(options.frame), encoding="utf-8")
    return 0


def _run_script(options: argparse.Namespace) -> tuple[Lab, str]:
    """Run the script; return the lab, and the message that ended it early."""
    if options.script is None:
        script = ""
    elif options.script == "-":
        script = sys.stdin.read()
    else:
        script = Path(options.script).read_text(encoding="utf-8", errors="replace")
    lab = Lab(_machine(options))
    try:
        lab.run(script)
    except LabError as error:
        return lab, str(error)
    return lab, ""


def _lab(options: argparse.Namespace) -> int:
    lab, problem = _run_script(options)
    for step in lab.steps:
        notes = [", ".join(step.faults)] * bool(step.faults) + [step.why] * bool(step.why)
        print(f"{step.number:3}  {step.process}: {step.text}  {step.outcome}" + (f"  ({'; '.join(notes)})" if notes else ""))
    for state in lab.snapshot().processes:
        if state.alive:
            print(f"{state.name}: {len(state.areas)} areas, {state.rss_anon} + {state.rss_file} + {state.rss_shmem} pages resident "
                  f"(anon, file, shmem), page tables {state.pgtables_bytes // 1024} kB, faults {state.minflt} + {state.majflt}")
    if problem:
        print(f"mmsim: {problem}", file=sys.stderr)
        return 2
    return 0


def _maps(options: argparse.Namespace) -> int:
    lab, problem = _run_script(options)
    if problem:
        raise InputError(problem)
    living = [one for one in lab.processes.values() if one.process.alive]
    for one in living:
        if len(living) > 1:
            print(f"{one.name}:")
        print(maps(one.process.mm), end="")
    return 0


def _exercise(options: argparse.Namespace) -> int:
    session = Session()
    if options.name is None:
        print("\n".join(f"{one.number:5}  {one.title}" for one in exercises()))
        return 0
    one = find(options.name)
    if options.hint or options.solution:
        hints = [session.hint(one.label) for _ in one.hints]
        print(session.solution(one.label) if options.solution else "\n".join(hints[:options.hint]))
        return 0
    if not options.answers:
        print(f"{one.number} {one.title} asks for")
        print("\n".join(f"  {part.name}: {part.asked}" for part in one.parts))
        return 0
    verdict = session.check(one.label, *options.answers)
    print(verdict)
    return 0 if verdict else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m mmsim", description="One simulated Linux machine, faithful to 5.17 on x86-64.",
        epilog="exit status: 0 done, 1 what was asked for failed, 2 the command cannot be used so")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, does: Callable[[argparse.Namespace], int], text: str, *, machine: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(does=does)
        if machine:
            places = {"nargs": "?"} if machine == "machine" else {}
            made.add_argument(machine, default="ref256", metavar="MACHINE", **places,  # type: ignore[arg-type]
                              help=f"{', '.join(REFERENCE_MACHINES)} (default ref256), or a file with a kernel log")
            made.add_argument("--cmdline", metavar="TEXT", help="the kernel's command line")
        return made

    command("boot", _boot, "print the kernel log of a boot", machine="machine")
    for file in PROC_FILES:
        command(file, _proc, f"print /proc/{file} of a booted machine", machine="--machine").set_defaults(file=file)
    proc = command("proc", _proc, "print any file of /proc", machine="--machine")
    proc.add_argument("file", metavar="FILE", help="its name without /proc/")
    figure = command("figure", _figure, "list the figures, print one in words, or write a frame as SVG")
    figure.add_argument("name", nargs="?", metavar="NAME", help="as in the address of the page: buddy-board or #fig-buddy-board")
    figure.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated")
    figure.add_argument("--svg", type=Path, metavar="FILE", help="write a frame to this file")
    figure.add_argument("--frame", type=int, default=1, metavar="N", help="which frame (default 1)")
    for name, does, text in (("lab", _lab, "run a script of system calls and accesses, and print what becomes of each step"),
                             ("maps", _maps, "print /proc/PID/maps of the processes of a script, or of a new process")):
        script = command(name, does, text, machine="--machine")
        script.add_argument("script", nargs="?" if name == "maps" else None, metavar="SCRIPT",
                            help="a file in the lab's language (see mmsim/lab/script.py), or - for the standard input")
    exercise = command("exercise", _exercise, "check the answers to an exercise of the book, or list the exercises with numbers")
    exercise.add_argument("name", nargs="?", metavar="EXERCISE", help="its number, as 5.3, or its label, as ex05-atomic")
    exercise.add_argument("answers", nargs="*", metavar="ANSWER", help="375, 0x240, '64 KiB'; without one, what is asked")
    exercise.add_argument("--hint", action="count", default=0, help="a hint; twice, two of them")
    exercise.add_argument("--solution", action="store_true", help="the answers, and the code that computes them")
    # Its options are its own: everything that follows goes there.
    commands.add_parser("replay", help="replay recordings of real kernels (replay --help)", add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["replay"]:
        return replay(given[1:])
    options = _parser().parse_args(given)
    try:
        return int(options.does(options))
    except BrokenPipeError:
        # Somebody read the first lines only, as head does. Nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KernelPanic as panic:
        print(f"Kernel panic - not syncing: {panic}", file=sys.stderr)
        return 1
    except (InputError, OSError) as error:
        print(f"mmsim: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
