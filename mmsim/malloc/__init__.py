"""Allocators of user space: from a bump pointer to glibc's malloc, all on a simulated process's own system calls.

:mod:`~mmsim.malloc.program` is what an allocator runs in: system calls and memory, word by word. Headers, tags and lists of
every allocator lie in that memory, so they fault pages in, can be looked at, and are corrupted by whoever writes beyond his
block. :mod:`~mmsim.malloc.bump`, :mod:`~mmsim.malloc.freelist`, :mod:`~mmsim.malloc.segregated` and
:mod:`~mmsim.malloc.buddy` are the small ones; :mod:`mmsim.malloc.glibc` is glibc 2.36.
"""
