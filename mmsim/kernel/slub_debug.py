"""SLUB's own detectives: patterns around and in objects, and the reports when one is wrong.

With ``slub_debug=FZPU`` every object is fenced and every free one filled::

    F  consistency checks   is this an object of the slab, is it free already, does the free list lead somewhere?
    Z  red zones            bytes before and behind the object: 0xbb while it is free, 0xcc while it is given out
    P  poison               a free object is 0x6b 0x6b … 0xa5; bytes that are nobody's are 0x5a
    U  user tracking        who allocated and who freed each object, when and on which CPU

A wrong byte is found late: when the object is next allocated or freed. The kernel reports it, repairs it and goes on.

5.17: mm/slub.c. Pointers are printed as they are: with slub_debug the kernel boots with ``no_hash_pointers``. Left out: stacks
(dump_stack(), the return addresses of a track).
"""

from __future__ import annotations

import struct

from mmsim.kernel.slab import KmemCache, Slab
from mmsim.kernel.slab_layout import (
    SIZEOF_TRACK,
    SLAB_CONSISTENCY_CHECKS,
    SLAB_POISON,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
    SLAB_TRACE,
    order_objects,
)
from mmsim.physical.frames import PG
from mmsim.physical.page import format_page_flags
from mmsim.units import PAGE_SIZE

__all__ = [
    "POISON_END", "POISON_FREE", "POISON_INUSE", "SLUB_RED_ACTIVE", "SLUB_RED_INACTIVE", "alloc_debug_processing",
    "check_object", "check_slab", "check_valid_pointer", "free_debug_processing", "init_object", "init_tracking", "object_err",
    "print_hex_dump", "print_tracking", "setup_slab_debug", "slab_err", "slab_fix", "slab_pad_check",
]

# include/linux/poison.h
SLUB_RED_INACTIVE, SLUB_RED_ACTIVE = 0xBB, 0xCC
POISON_INUSE, POISON_FREE, POISON_END = 0x5A, 0x6B, 0xA5
_TRACK = struct.Struct("<17Q2iQ")
_ALLOCATED, _FREED = 0, 1


def _red(active: bool) -> int:
    return SLUB_RED_ACTIVE if active else SLUB_RED_INACTIVE


# -- printing ------------------------------------------------------------------------------------------------

def print_hex_dump(prefix: str, address: int, data: bytes) -> list[str]:
    """Lines of 16 bytes, each with its address, in hexadecimal and as text (5.17: lib/hexdump.c, print_hex_dump()).

    >>> print_hex_dump("Object   ", 0xffff888000001000, bytes(4) + b"mm")
    ['Object   ffff888000001000: 00 00 00 00 6d 6d                                ....mm']
    """
    lines = []
    for start in range(0, len(data), 16):
        row = data[start:start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{prefix}{address + start:016x}: {row.hex(' '):<49}{text}")
    return lines


def _section(s: KmemCache, prefix: str, address: int, length: int) -> None:
    for line in print_hex_dump(prefix, address, s.slub.read(address, length)):
        s.slub.klog.printk(line)


def _slab_bug(s: KmemCache, text: str) -> None:
    printk = s.slub.klog.printk
    printk("=" * 77)
    printk(f"BUG {s.name} ({s.slub.print_tainted()}): {text}")
    printk("-" * 77 + "\n")


def slab_fix(s: KmemCache, text: str) -> None:
    """Say how the damage was limited (5.17: slab_fix())."""
    s.slub.klog.printk(f"FIX {s.name}: {text}")


def _print_slab_info(s: KmemCache, slab: Slab) -> None:
    flags = format_page_flags(s.slub.memory.frames, slab.pfn)
    s.slub.klog.printk(f"Slab 0x{s.slub.layout.page_struct(slab.pfn):016x} objects={slab.objects} used={slab.inuse} "
                       f"fp=0x{slab.freelist:016x} flags={flags}")


def _size_from_object(s: KmemCache) -> int:
    return s.size - s.layout.red_left_pad if s.flags & SLAB_RED_ZONE else s.size


def _metadata_end(s: KmemCache) -> int:
    """Where what SLUB keeps behind an object ends, and padding begins."""
    return s.layout.info_end + (2 * SIZEOF_TRACK if s.flags & SLAB_STORE_USER else 0)


def _print_trailer(s: KmemCache, slab: Slab, obj: int) -> None:
    print_tracking(s, obj)
    _print_slab_info(s, slab)
    s.slub.klog.printk(f"Object 0x{obj:016x} @offset={obj - slab.address} fp=0x{s.get_freepointer(obj):016x}\n")
    if s.flags & SLAB_RED_ZONE:
        _section(s, "Redzone  ", obj - s.layout.red_left_pad, s.layout.red_left_pad)
    elif obj > slab.address + 16:
        _section(s, "Bytes b4 ", obj - 16, 16)
    _section(s, "Object   ", obj, min(s.object_size, PAGE_SIZE))
    if s.flags & SLAB_RED_ZONE:
        _section(s, "Redzone  ", obj + s.object_size, s.inuse - s.object_size)
    end = _metadata_end(s)
    if end != _size_from_object(s):
        _section(s, "Padding  ", obj + end, _size_from_object(s) - end)


def object_err(s: KmemCache, slab: Slab, obj: int, reason: str) -> None:
    """Report an object with all that is known of it, and taint the kernel (5.17: object_err())."""
    _slab_bug(s, reason)
    _print_trailer(s, slab, obj)
    s.slub.tainted = True


def slab_err(s: KmemCache, slab: Slab, text: str) -> None:
    """Report a slab (5.17: slab_err())."""
    _slab_bug(s, text)
    _print_slab_info(s, slab)
    s.slub.tainted = True


# -- who did it ----------------------------------------------------------------------------------------------

def _track_address(s: KmemCache, obj: int, which: int) -> int:
    return obj + s.layout.info_end + which * SIZEOF_TRACK


def _set_track(s: KmemCache, obj: int, which: int, caller: str) -> None:
    slub = s.slub
    track = _TRACK.pack(slub.symbols.address(caller), *[0] * 16, slub.memory.cpu, slub.pid, slub.memory.clock.jiffies)
    slub.write(_track_address(s, obj, which), track)


def init_tracking(s: KmemCache, obj: int) -> None:
    """Nobody had the object yet (5.17: init_tracking())."""
    if s.flags & SLAB_STORE_USER:
        s.slub.memset(_track_address(s, obj, _ALLOCATED), 0, 2 * SIZEOF_TRACK)


def print_tracking(s: KmemCache, obj: int) -> None:
    """Print who allocated and who freed an object last (5.17: print_tracking())."""
    if not s.flags & SLAB_STORE_USER:
        return
    for which, text in ((_ALLOCATED, "Allocated"), (_FREED, "Freed")):
        fields = _TRACK.unpack(s.slub.read(_track_address(s, obj, which), SIZEOF_TRACK))
        caller, cpu, pid, when = fields[0], *fields[17:]
        if caller:
            s.slub.klog.printk(f"{text} in {s.slub.symbols.name(caller)} age={s.slub.memory.clock.jiffies - when} "
                               f"cpu={cpu} pid={pid}")


# -- patterns ------------------------------------------------------------------------------------------------

def init_object(s: KmemCache, obj: int, active: bool) -> None:
    """Draw the red zones of an object that is given out (``active``) or free, and poison what it holds.

    An object that is given out is poisoned too: who reads it before writing reads 0x6b. 5.17: init_object().
    """
    memset = s.slub.memset
    if s.flags & SLAB_RED_ZONE:
        memset(obj - s.layout.red_left_pad, _red(active), s.layout.red_left_pad)
    if s.layout.object_poison:
        memset(obj, POISON_FREE, s.object_size - 1)
        memset(obj + s.object_size - 1, POISON_END, 1)
    if s.flags & SLAB_RED_ZONE:
        memset(obj + s.object_size, _red(active), s.inuse - s.object_size)


def setup_slab_debug(s: KmemCache, slab: Slab) -> None:
    """Fill a new slab with the pattern of bytes that are nobody's (5.17: setup_slab_debug())."""
    if s.flags & SLAB_POISON:
        s.slub.memset(slab.address, POISON_INUSE, slab.size)


def _wrong_bytes(s: KmemCache, start: int, value: int, length: int) -> tuple[int, int, int] | None:
    """The first and the last byte that is not ``value``, and the first one's value; None if all are."""
    data = s.slub.read(start, length)
    wrong = data.lstrip(bytes((value,)))
    if not wrong:
        return None
    first = length - len(wrong)
    return start + first, start + len(data.rstrip(bytes((value,)))), data[first]


def _restore_bytes(s: KmemCache, what: str, value: int, start: int, end: int) -> None:
    slab_fix(s, f"Restoring {what} 0x{start:016x}-0x{end - 1:016x}=0x{value:x}")
    s.slub.memset(start, value, end - start)


def _check_bytes_and_report(s: KmemCache, slab: Slab, obj: int, what: str, start: int, value: int, length: int) -> bool:
    found = _wrong_bytes(s, start, value, length)
    if found is None:
        return True
    fault, end, byte = found
    _slab_bug(s, f"{what} overwritten")
    s.slub.klog.printk(f"0x{fault:016x}-0x{end - 1:016x} @offset={fault - slab.address}. First byte 0x{byte:x} instead of "
                       f"0x{value:x}")
    _print_trailer(s, slab, obj)
    s.slub.tainted = True
    _restore_bytes(s, what, value, fault, end)
    return False


def slab_pad_check(s: KmemCache, slab: Slab) -> None:
    """Check the bytes at a slab's end that belong to no object; repair them (5.17: slab_pad_check())."""
    remainder = slab.size % s.size
    if not s.flags & SLAB_POISON or not remainder:
        return
    pad = slab.address + slab.size - remainder
    found = _wrong_bytes(s, pad, POISON_INUSE, remainder)
    if found is not None:
        fault, end, _ = found
        slab_err(s, slab, f"Padding overwritten. 0x{fault:016x}-0x{end - 1:016x} @offset={fault - slab.address}")
        _section(s, "Padding ", pad, remainder)
        _restore_bytes(s, "slab padding", POISON_INUSE, fault, end)


# -- checks --------------------------------------------------------------------------------------------------

def check_valid_pointer(s: KmemCache, slab: Slab, obj: int) -> bool:
    """Whether an address is 0 or that of an object of the slab (5.17: check_valid_pointer())."""
    if not obj:
        return True
    offset = obj - (s.layout.red_left_pad if s.flags & SLAB_RED_ZONE else 0) - slab.address
    return 0 <= offset < slab.objects * s.size and offset % s.size == 0


def check_object(s: KmemCache, slab: Slab, obj: int, active: bool) -> bool:
    """Check red zones, poison, padding and free pointer of an object that should be given out (``active``) or free.

    What is wrong is reported and, as far as it can be, repaired. 5.17: check_object().
    """
    end = obj + s.object_size
    if s.flags & SLAB_RED_ZONE:
        if not _check_bytes_and_report(s, slab, obj, "Left Redzone", obj - s.layout.red_left_pad, _red(active),
                                       s.layout.red_left_pad):
            return False
        if not _check_bytes_and_report(s, slab, obj, "Right Redzone", end, _red(active), s.inuse - s.object_size):
            return False
    elif s.flags & SLAB_POISON and s.object_size < s.inuse:
        _check_bytes_and_report(s, slab, obj, "Alignment padding", end, POISON_INUSE, s.inuse - s.object_size)
    if s.flags & SLAB_POISON:
        if not active and s.layout.object_poison and not (
                _check_bytes_and_report(s, slab, obj, "Poison", obj, POISON_FREE, s.object_size - 1)
                and _check_bytes_and_report(s, slab, obj, "End Poison", end - 1, POISON_END, 1)):
            return False
        padding = _metadata_end(s)
        if padding != _size_from_object(s):
            _check_bytes_and_report(s, slab, obj, "Object padding", obj + padding, POISON_INUSE,
                                    _size_from_object(s) - padding)
    if active and not s.layout.freeptr_outside_object:
        # Its owner may have overwritten the free pointer: that is its right.
        return True
    if not check_valid_pointer(s, slab, s.get_freepointer(obj)):
        object_err(s, slab, obj, "Freepointer corrupt")
        s.set_freepointer(obj, 0)
        return False
    return True


def check_slab(s: KmemCache, slab: Slab) -> bool:
    """Check a slab's own numbers (5.17: check_slab())."""
    if not s.slub.memory.frames.flags[slab.pfn] & PG["slab"]:
        slab_err(s, slab, "Not a valid slab page")
        return False
    maxobj = order_objects(slab.order, s.size)
    if slab.objects > maxobj:
        slab_err(s, slab, f"objects {slab.objects} > max {maxobj}")
        return False
    if slab.inuse > slab.objects:
        slab_err(s, slab, f"inuse {slab.inuse} > max {slab.objects}")
        return False
    slab_pad_check(s, slab)
    return True


def _on_freelist(s: KmemCache, slab: Slab, search: int) -> bool:
    """Whether an object is on the slab's free list; damage found on the way is reported (5.17: on_freelist())."""
    count, before, fp = 0, 0, slab.freelist
    while fp and count <= slab.objects:
        if fp == search:
            return True
        if not check_valid_pointer(s, slab, fp):
            if not before:
                slab_err(s, slab, "Freepointer corrupt")
                slab.freelist, slab.inuse = 0, slab.objects
                slab_fix(s, "Freelist cleared")
                return False
            object_err(s, slab, before, "Freechain corrupt")
            s.set_freepointer(before, 0)
            break
        before, fp = fp, s.get_freepointer(fp)
        count += 1
    max_objects = order_objects(slab.order, s.size)
    if slab.objects != max_objects:
        slab_err(s, slab, f"Wrong number of objects. Found {slab.objects} but should be {max_objects}")
        slab.objects = max_objects
        slab_fix(s, "Number of objects adjusted")
    if slab.inuse != slab.objects - count:
        slab_err(s, slab, f"Wrong object count. Counter is {slab.inuse} but counted were {slab.objects - count}")
        slab.inuse = slab.objects - count
        slab_fix(s, "Object count adjusted")
    return not search


def _trace(s: KmemCache, slab: Slab, obj: int, what: str) -> None:
    if s.flags & SLAB_TRACE:
        s.slub.klog.printk(f"TRACE {s.name} {what} 0x{obj:016x} inuse={slab.inuse} fp=0x{slab.freelist:016x}")
        if what == "free":
            _section(s, "Object ", obj, s.object_size)


def alloc_debug_processing(s: KmemCache, slab: Slab, obj: int, caller: str) -> bool:
    """Check an object that is about to be given out, and mark it as such. False: it is damaged, the whole slab is taken out
    of use (all its objects count as in use from now on). 5.17: alloc_debug_processing().
    """
    if s.flags & SLAB_CONSISTENCY_CHECKS:
        good = check_slab(s, slab)
        if good and not check_valid_pointer(s, slab, obj):
            object_err(s, slab, obj, "Freelist Pointer check fails")
            good = False
        if not (good and check_object(s, slab, obj, False)):
            if s.slub.memory.frames.flags[slab.pfn] & PG["slab"]:
                slab_fix(s, "Marking all objects used")
                slab.inuse, slab.freelist = slab.objects, 0
            return False
    if s.flags & SLAB_STORE_USER:
        _set_track(s, obj, _ALLOCATED, caller)
    _trace(s, slab, obj, "alloc")
    init_object(s, obj, True)
    return True


def free_debug_processing(s: KmemCache, slab: Slab, obj: int, caller: str) -> bool:
    """Check an object that is about to be freed, and mark it as free. False: it is not freed.

    5.17: free_debug_processing(), for one object.
    """
    if s.flags & SLAB_CONSISTENCY_CHECKS and not (check_slab(s, slab) and _free_consistency_checks(s, slab, obj)):
        slab_fix(s, f"Object at 0x{obj:016x} not freed")
        return False
    if s.flags & SLAB_STORE_USER:
        _set_track(s, obj, _FREED, caller)
    _trace(s, slab, obj, "free")
    init_object(s, obj, False)
    return True


def _free_consistency_checks(s: KmemCache, slab: Slab, obj: int) -> bool:
    if not check_valid_pointer(s, slab, obj):
        slab_err(s, slab, f"Invalid object pointer 0x{obj:016x}")
        return False
    if _on_freelist(s, slab, obj):
        object_err(s, slab, obj, "Object already free")
        return False
    if not check_object(s, slab, obj, True):
        return False
    if slab.cache is not s:
        object_err(s, slab, obj, "page slab pointer corrupt.")
        return False
    return True
