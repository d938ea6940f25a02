"""Check the answers to the book's exercises: those that have numbers as answers.

    >>> from mmsim.exercises import check, hint, solution
    >>> check("5.3", 375, 400)
    5.3 How deep may an interrupt handler go? not yet
      atomic: right, 375 pages
      victim: not yet: free memory at which the OOM killer's victim is refused, in pages; you said 400 pages

Exercises are named by chapter and position ("5.3") or by their label in the page ("ex05-atomic"). Answers are numbers, or text
such as "0x240", "64 KiB", "1 939"; several are given in order, or by name: ``check("5.3", atomic=375)``. What was expected is
computed by the mechanism, when it is asked for. ``hint`` gives one hint at a time, ``solution`` the answer, when the hints have
been read or the exercise is solved. Unknown exercises and answers that are no numbers raise InputError with one sentence.

In a terminal: ``python3 -m mmsim exercise 5.3 375 500``.
"""

from mmsim.exercises.registry import Exercise, exercises, find
from mmsim.exercises.session import Session, Verdict

__all__ = ["Exercise", "Session", "Verdict", "check", "exercises", "find", "hint", "solution"]

_session = Session()
check = _session.check
hint = _session.hint
solution = _session.solution
