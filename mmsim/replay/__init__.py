"""Recorded kernel runs against the model: ``python3 -m mmsim.replay PATH…`` prints how much of each file agrees."""
