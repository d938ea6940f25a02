"""mmsim: one simulated Linux machine whose memory management can be watched step by step."""

__version__ = "0.1.0"
