"""The function tracer: which of the kernel's functions one event of the simulated machine runs through (chapter 2)."""
