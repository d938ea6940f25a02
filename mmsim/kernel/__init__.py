"""The kernel's own memory: its address space, its object caches (SLUB), its virtually contiguous areas."""
