"""The process that makes a recording: it makes the calls, and prints what the kernel answers.

It is a process of its own, started by :mod:`mmsim.replay.record`, because it maps and unmaps at fixed addresses and turns
ASLR off; each sequence then runs in a child of it. Nothing here is simulated, and nothing of the model is asked.

The interpreter itself must keep still meanwhile: its memory comes from the C library's heap, which is made large enough
first and told to take nothing from mmap and to give nothing back.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from mmsim import constants
from mmsim.constants import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from mmsim.errors import InputError
from mmsim.replay.record_ops import fuzz_ops, place_ops
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE, u64

__all__ = ["HeapKeeper", "Libc", "own_areas", "record_place", "record_vma"]

#: The range of fuzz-maps: nothing of a process lies there.
BASE = 0x1000_0000_0000
_ADDR_NO_RANDOMIZE = 0x0040000
_PR_SET_THP_DISABLE = 41
_PERSONALITY_QUERY = 0xFFFF_FFFF
_RLIMIT_STACK, _STACK_LIMIT = 3, 8 * MIB
#: mallopt(): M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX.
_MALLOPT = ((-1, 1 << 30), (-2, 0), (-4, 0))
_OWN_HEAP = 32 * MIB
#: Functions that return an address or a size; all others return an int.
_LONG = ("mmap", "mremap", "sbrk", "malloc", "read", "write")
_LEFT = ("sd",)                 # flags of VmFlags that depend on the kernel's configuration


class Libc:
    """System calls through the C library, with results as the kernel gives them: negative for an error."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None, use_errno=True)
        self._known: dict[str, Callable[..., int]] = {}

    def __call__(self, name: str, *arguments: int) -> int:
        function = self._known.get(name)
        if function is None:
            if not hasattr(self.library, name):
                raise InputError(f"the C library has no {name}()")
            function = getattr(self.library, name)
            function.restype = ctypes.c_long if name in _LONG else ctypes.c_int
            self._known[name] = function
        ctypes.set_errno(0)
        result = function(*map(ctypes.c_long, arguments))
        return -ctypes.get_errno() if result == -1 and ctypes.get_errno() else int(result)


class HeapKeeper:
    """Keeps the interpreter from mapping anything while calls are recorded. Raise InputError where the C library can't."""

    def __init__(self, libc: Libc):
        for option, value in _MALLOPT:
            libc("mallopt", option, value)
        heap = libc("malloc", _OWN_HEAP)
        ctypes.memset(heap, 0, _OWN_HEAP)               # so that what the interpreter takes from it costs no fault
        libc("free", heap)
        gc.disable()


def own_areas(flags: bool = False) -> list[tuple[int, int, str, int, int, str, str]]:
    """This process's areas: start, end, permissions, offset, inode, name, VmFlags (with ``flags``)."""
    areas: list[tuple[int, int, str, int, int, str, str]] = []
    with open("/proc/self/smaps" if flags else "/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split(None, 5)
            if "-" in words[0] and not words[0].endswith(":"):
                start, end = (int(number, 16) for number in words[0].split("-"))
                name = words[5].strip() if len(words) > 5 else ""
                areas.append((start, end, words[1], int(words[2], 16), int(words[4]), name, ""))
            elif words[0] == "VmFlags:" and areas:
                kept = " ".join(word for word in line.split()[1:] if word not in _LEFT)
                areas[-1] = (*areas[-1][:6], kept)
    return areas


class _Recorder:
    """The calls of one sequence of fuzz-maps."""

    def __init__(self, libc: Libc, pages: int, with_flags: bool):
        self.libc, self.pages, self.with_flags = libc, pages, with_flags
        self.files = {name: os.memfd_create(name, 0) for name in ("fA", "fB")}
        for fd in self.files.values():
            os.ftruncate(fd, 256 * PAGE_SIZE)
        self.inodes = {os.fstat(fd).st_ino: name for name, fd in self.files.items()}
        self.zero = os.open("/dev/zero", os.O_RDONLY)
        end = libc("sbrk", 0)
        libc("sbrk", PAGE_SIZE - (end & PAGE_SIZE - 1))
        libc("sbrk", 16 * PAGE_SIZE)
        self.heap_start = libc("sbrk", 0)

    def heap_pages(self) -> int:
        return (self.libc("sbrk", 0) - self.heap_start) >> PAGE_SHIFT

    def write(self, address: int) -> int:
        """A write of one byte to the program's memory, as the kernel does it for read(): the signal that an instruction's
        write would get, or 0.

        The fault is that of an instruction, but a bad address is EFAULT instead of a signal. Which one it would have been
        shows the area: SIGBUS comes only where writing is allowed.
        """
        if self.libc("read", self.zero, address, 1) == 1:
            return 0
        allowed = any(start <= address < end and "w" in perms for start, end, perms, *_ in own_areas())
        return 7 if allowed else 11

    def run(self, op: dict[str, Any]) -> int:
        libc, name = self.libc, op["op"]
        if name == "brk":
            return libc("brk", self.heap_start + op["to"] * PAGE_SIZE)
        start = BASE + op["page"] * PAGE_SIZE
        if name == "write":
            return self.write(start)
        length = op["len"] * PAGE_SIZE
        if name == "mmap":
            flags = MAP_FIXED | (MAP_SHARED if "SHARED" in op["flags"] else MAP_PRIVATE)
            flags |= (MAP_ANONYMOUS if "ANON" in op["flags"] else 0) | (MAP_NORESERVE if "NORESERVE" in op["flags"] else 0)
            result = libc("mmap", start, length, op["prot"], flags, self.files.get(op["file"], -1), op["pgoff"] * PAGE_SIZE)
            return min(result, 0)
        if name == "mremap":
            flags = sum(bit for word, bit in (("MAYMOVE", MREMAP_MAYMOVE), ("FIXED", MREMAP_FIXED), ("DONTUNMAP", MREMAP_DONTUNMAP))
                        if word in op["flags"])
            result = libc("mremap", start, length, op["newlen"] * PAGE_SIZE, flags, BASE + op.get("to", 0) * PAGE_SIZE)
            return result if result < 0 else u64(result - BASE) >> PAGE_SHIFT
        if name == "madvise":
            return libc("madvise", start, length, getattr(constants, f"MADV_{op['advice']}"))
        if name == "mprotect":
            return libc("mprotect", start, length, op["prot"])
        if name == "mlock2_onfault":
            return libc("mlock2", start, length, MLOCK_ONFAULT)
        return libc(name, start, length)

    def dump(self) -> dict[str, Any]:
        """The areas in the range and above the heap's start, in the format of the recordings."""
        rows: list[list[Any]] = []
        heap: list[list[Any]] = []
        top = BASE + self.pages * PAGE_SIZE
        for start, end, perms, offset, inode, name, flags in own_areas(self.with_flags):
            if start < top and end > BASE:
                kind = self.inodes.get(inode, "shm") if inode else "anon"
                row = [(max(start, BASE) - BASE) >> PAGE_SHIFT, (min(end, top) - BASE) >> PAGE_SHIFT, perms, offset >> PAGE_SHIFT, kind]
                rows.append(row + [flags] if self.with_flags else row)
            elif end > self.heap_start and (name == "[heap]" or (start >= self.heap_start and not inode
                                                                 and end <= self.heap_start + (64 << 20))):
                heap.append([max(start - self.heap_start, 0) >> PAGE_SHIFT, (end - self.heap_start) >> PAGE_SHIFT, perms])
        return {"maps": rows, "heap": heap}


def record_vma(libc: Libc, seed: int, count: int, pages: int, with_flags: bool) -> dict[str, Any]:
    """One sequence of fuzz-maps on this kernel."""
    recorder = _Recorder(libc, pages, with_flags)
    done: list[dict[str, Any]] = []
    for op in fuzz_ops(seed, count, pages, recorder.heap_pages):
        result = recorder.run(op)
        if op["op"] == "write":
            op["signal"] = result
        done.append(op | {"ret": -1 if result < 0 else result, "errno": max(-result, 0)} | recorder.dump())
    return {"seed": seed, "npages": pages, "ops": done}


def record_place(libc: Libc, seed: int, count: int, aslr: bool) -> dict[str, Any]:
    """One sequence of place on this kernel. With ASLR the record says where the mmap area ends (``mmap_base``): at the highest
    area that isn't the stack or one above it."""
    areas = own_areas()
    record: dict[str, Any] = {"seed": seed}
    if aslr:
        stack = next(start for start, _, _, _, _, name, _ in areas if name == "[stack]")
        record["mmap_base"] = max(end for _, end, *_ in areas if end <= stack) >> PAGE_SHIFT
    record["start_maps"] = [[start >> PAGE_SHIFT, end >> PAGE_SHIFT] for start, end, *_ in areas]
    record["ops"] = done = []
    ops = place_ops(seed, count)
    op = next(ops, None)
    while op is not None:
        if op["op"] == "munmap":
            libc("munmap", op["page"] * PAGE_SIZE, op["len"] * PAGE_SIZE)
            done.append(op)
            op = next(ops, None)
            continue
        address = libc("mmap", op["hint"] * PAGE_SIZE, op["len"] * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        done.append(op | {"page": address >> PAGE_SHIFT})
        try:
            op = ops.send(address >> PAGE_SHIFT)
        except StopIteration:
            op = None
    return record


def without_aslr(libc: Libc) -> bool:
    """Turn ASLR off for this program and start it again; return False where that is forbidden, True when it is off."""
    if libc("personality", _PERSONALITY_QUERY) & _ADDR_NO_RANDOMIZE:
        return True
    if os.environ.get("MMSIM_RECORD_RESTARTED"):
        return False
    import resource
    hard = resource.getrlimit(_RLIMIT_STACK)[1]
    if hard == resource.RLIM_INFINITY or hard >= _STACK_LIMIT:
        resource.setrlimit(_RLIMIT_STACK, (_STACK_LIMIT, hard))
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))
    current = libc("personality", _PERSONALITY_QUERY)
    libc("personality", current | _ADDR_NO_RANDOMIZE)
    environment = os.environ | {"MMSIM_RECORD_RESTARTED": "1", "PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "mmsim.replay.record_child", *sys.argv[1:]], environment)


def _in_child(make: Callable[[], dict[str, Any]]) -> None:
    """Make one record in a process of its own, which prints it; raise InputError if it did not live to do so."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            data = (json.dumps(make(), separators=(",", ":")) + "\n").encode()
            while data:
                data = data[os.write(1, data):]
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        raise InputError(f"the recording process ended with {how}")


def main(arguments: list[str]) -> int:
    """``record_child KIND SEED SEQUENCES OPS PAGES SMAPS``, all but the first numbers: print the records as JSON lines."""
    kind, seed, sequences, ops, pages, smaps = arguments[0], *map(int, arguments[1:6])
    libc = Libc()
    aslr = not without_aslr(libc)
    try:
        if kind == "faults":
            from mmsim.replay.record_faults import record_faults
            libc("prctl", _PR_SET_THP_DISABLE, 1, 0, 0, 0)
            # One CPU: what waits in the pagevecs of another would stay there.
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            HeapKeeper(libc)
            record_faults(libc)
            return 0
        HeapKeeper(libc)
        for number in range(seed, seed + sequences):
            if kind == "vma":
                _in_child(lambda number=number: record_vma(libc, number, ops, pages, bool(smaps)))   # type: ignore[misc]
            else:
                _in_child(lambda number=number: record_place(libc, number, ops, aslr))              # type: ignore[misc]
    except InputError as error:
        print(f"mmsim.replay record: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
