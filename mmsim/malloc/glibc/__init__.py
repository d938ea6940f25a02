"""malloc of the GNU C library 2.36, function by function, on a simulated process.

The state of the library lies where it lies in a real process: chunk headers, free lists and the thread cache in the heap,
``main_arena`` in the library's data, the arenas of other threads at the start of their first heap. So an overflow corrupts what
it would corrupt, and ends in the same message. :class:`~mmsim.malloc.glibc.ptmalloc.Ptmalloc` is what a program calls.
"""
