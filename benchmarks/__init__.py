"""Ratios against peers and against the host: `make bench`. No test depends on them."""
