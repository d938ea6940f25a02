"""The text of /proc and /sys files about memory, written from the machine's own zones and nodes in the kernel's
formats."""
