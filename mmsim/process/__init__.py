"""Processes: their address spaces, and the system calls that change them."""
