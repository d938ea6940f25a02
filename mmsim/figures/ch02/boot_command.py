"""The command that boots a kernel under qemu: each flag, and what happens without it."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cache

from mmsim.draw import Ask, Choice, Frame, Legend, Scene, Toggle, figure, grouped, text_width, wrap_text
from mmsim.errors import InputError, KernelError
from mmsim.figures.ch19.firmware import boot_pc
from mmsim.units import MIB, PAGE_SIZE

__all__ = ["FLAGS", "Stage", "boot_command", "managed_kib", "outcome"]


@dataclass(frozen=True, slots=True)
class Flag:
    """A part of the command: its words, and a sentence about what happens without it."""

    words: str
    without: str


FLAGS: dict[str, Flag] = {
    "kernel": Flag("-kernel bzImage", "Without -kernel, qemu's firmware looks for a disk to boot from and finds none."),
    "memory": Flag("-m 256M", "Without -m, qemu gives the machine 128 MiB."),
    "console": Flag("console=ttyS0", "Without console=ttyS0 the kernel runs, and writes to a screen that nobody sees."),
    "nographic": Flag("-nographic", "Without -nographic, qemu wants a window, and the serial port is not your terminal."),
    "initrd": Flag("-initrd root.cpio", "Without -initrd there is nothing to run: the kernel panics as it looks for a root file system."),
    "nokaslr": Flag("nokaslr", "Without nokaslr the kernel lies elsewhere at each boot, and the debugger's addresses are wrong."),
    "stub": Flag("-s", "Without -s no debugger can attach."),
    "halt": Flag("-S", "Without -S the machine starts at once; the boot is over before gdb has read its symbols."),
}
_ORDER = ("kernel", "initrd", "append", "memory", "stub", "halt", "nographic")
_ROLES = {"ok": "file", "quiet": "reserved", "wait": "moving", "bad": "error", "never": ""}


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the way: ``state`` is ok, quiet (works, unseen), wait, bad or never (not reached)."""

    name: str
    state: str
    text: str


@cache
def managed_kib(mib: int) -> int:
    """What the page allocator gets on a simulated machine with so much RAM, in KiB. Raise InputError if it cannot boot."""
    machine = boot_pc(mib * MIB)
    return sum(zone.managed_pages for zone in machine.zones) * PAGE_SIZE // 1024


def outcome(on: Set[str], memory: int, static: bool) -> list[Stage]:
    """What happens with the flags that are given; ``static`` says whether the one program needs no libraries."""
    stages = [Stage("qemu", "ok", "a PC, " + ("its serial port is your terminal" if "nographic" in on else "its screen in a window"))]
    if "halt" in on:
        stages.append(Stage("debugger", "wait", "stopped before the first instruction; gdb: target remote :1234, then continue")
                      if "stub" in on else Stage("debugger", "bad", "stopped before the first instruction, and no gdb can attach"))
    else:
        stages.append(Stage("debugger", "quiet", "may attach at port 1234 while it runs" if "stub" in on else "none"))
    if stages[-1].state == "bad":
        return stages + [Stage(name, "never", "") for name in ("kernel", "console", "first program", "breakpoint")]
    if "kernel" not in on:
        stages.append(Stage("kernel", "bad", "No bootable device."))
        return stages + [Stage(name, "never", "") for name in ("console", "first program", "breakpoint")]
    mib = memory if "memory" in on else 128
    try:
        stages.append(Stage("kernel", "ok", f"{grouped(managed_kib(mib))} KiB of {mib} MiB go to the page allocator"))
    except (InputError, KernelError) as error:
        return [*stages, Stage("kernel", "bad", str(error)), *(Stage(name, "never", "") for name in ("console", "first program",
                                                                                                      "breakpoint"))]
    seen = "console" in on and "nographic" in on
    stages.append(Stage("console", "ok" if seen else "quiet", "messages in your terminal" if seen else
                        "messages on the serial port inside the window" if "console" in on else
                        "messages on a screen that is not there" if "nographic" in on else "messages in the window"))
    if "initrd" not in on:
        stages.append(Stage("first program", "bad", "VFS: Unable to mount root fs on unknown-block(0,0)"))
    elif not static:
        stages.append(Stage("first program", "bad", "Failed to execute /init (error -2): its libraries are not there"))
    else:
        stages.append(Stage("first program", "ok" if seen else "quiet", "Run /init as init process"))
    if "stub" not in on:
        stages.append(Stage("breakpoint", "never", "no debugger"))
    elif "nokaslr" in on:
        stages.append(Stage("breakpoint", "ok", "hits at handle_mm_fault()"))
    else:
        stages.append(Stage("breakpoint", "bad", "set at an address where handle_mm_fault() is not"))
    return stages


class _Command:
    """The command as words in boxes, those that are left out dashed."""

    def __init__(self, on: Set[str], memory: int, now: str):
        self.on, self.memory, self.now = on, memory, now

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the words, flowing into lines."""
        left, top = x, y
        words = [("qemu", "qemu-system-x86_64")]
        for name in _ORDER:
            if name == "append":
                words += [("append", '-append "'), ("console", "console=ttyS0"), ("nokaslr", "nokaslr"), ("end", '"')]
            else:
                words.append((name, f"-m {self.memory}M" if name == "memory" else FLAGS[name].words))
        for name, text in words:
            wide = text_width(text, "code") + 12
            if left > x and left + wide > x + width:
                left, top = x, top + 27
            if name in FLAGS:
                there = name in self.on
                cls = "moving" if name == self.now and there else "ghost focus" if name == self.now else "panel" if there else "ghost"
                scene.rect(f"{key}/{name}", left, top, wide, 22, cls, FLAGS[name].without, rx=3)
                ink = "on-moving" if name == self.now and there else "strong" if there else "muted"
                scene.text(f"{key}/{name}.t", left + 6, top + 15, text, "code", ink)
            else:
                scene.text(f"{key}/{name}.t", left + 3, top + 15, text, "code")
            left += wide + 4
        return top + 24 - y


class _Stages:
    """The stages below each other."""

    def __init__(self, stages: list[Stage]):
        self.stages = stages

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw a box and a sentence for each."""
        top = y
        for stage in self.stages:
            role = _ROLES[stage.state]
            scene.box(f"{key}/{stage.name}", x, top, 104, 24, stage.name, role, style="label", cls="" if role else "ghost")
            lines = wrap_text(stage.text or "not reached", width - 118, "label", 3)
            for number, line in enumerate(lines):
                scene.text(f"{key}/{stage.name}.{number}", x + 116, top + 16 + 16 * number, line, "label",
                           "muted" if stage.state in ("never", "quiet") else "")
            top += max(34, 16 * len(lines) + 14)
        scene.height = max(scene.height, round(top, 1))
        return top - y


@figure(
    "The boot command",
    alt="A qemu command in boxes, one for each flag, and below it the stages of the boot with what happens at each: qemu, debugger, "
        "kernel, console, first program, breakpoint.",
    params=[
        Toggle("kernel", True, label="-kernel"), Toggle("initrd", True, label="-initrd"), Toggle("console", True, label="console=ttyS0"),
        Toggle("nokaslr", True), Choice("ram", {"64": "64 MiB", "128": "128 MiB", "256": "256 MiB", "1024": "1 GiB"}, "256", label="-m"),
        Toggle("stub", True, label="-s"), Toggle("halt", True, label="-S"), Toggle("nographic", True, label="-nographic"),
        Choice("program", {"static": "linked statically", "dynamic": "needs libraries"}, "static", label="/init"),
    ],
)
def boot_command(kernel: bool, initrd: bool, console: bool, nokaslr: bool, ram: str, stub: bool, halt: bool, nographic: bool, program: str,
                 width: float) -> Iterator[Frame]:
    """Follows the flags to what they do; the memory that the kernel finds comes from booting the simulated machine with so much."""
    given = {"kernel": kernel, "initrd": initrd, "console": console, "nokaslr": nokaslr, "stub": stub, "halt": halt,
             "nographic": nographic, "memory": True}
    on = {name for name, there in given.items() if there}

    def shot(say: str, flags: Set[str], now: str = "", ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        scene.add(_Command(flags, int(ram), now), "command", "The command")
        scene.add(_Stages(outcome(flags, int(ram), program == "static")), "stages", "What happens")
        words = {"file": "works", "moving": "waits for you", "reserved": "works, unseen or unused", "error": "goes wrong"}
        scene.add(Legend(words), "legend")
        return Frame(scene, say, ask=ask)

    stages = outcome(on, int(ram), program == "static")
    wrong = [stage for stage in stages if stage.state == "bad"]
    say = f"With these flags: {wrong[0].name}: {wrong[0].text.rstrip('.')}." if wrong else \
        "With these flags the kernel boots, runs one program, and can be stopped anywhere." if "stub" in on and seen_all(stages) else \
        "With these flags the kernel boots and runs one program, but not all of it can be seen or stopped."
    yield shot(say, on, ask=Ask("Leave out nokaslr, on a kernel that can be moved. What breaks?", "the breakpoint",
                                "The kernel boots as ever. gdb takes its addresses from the file vmlinux, and the kernel is not there.",
                                choices=["the boot", "the breakpoint", "the console"]))
    for name, flag in FLAGS.items():
        yield shot(flag.without, on - {name}, name)


def seen_all(stages: list[Stage]) -> bool:
    """Whether every stage but the debugger's works and is seen."""
    return all(stage.state == "ok" for stage in stages if stage.name != "debugger")
