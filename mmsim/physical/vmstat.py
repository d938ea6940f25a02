"""How far the counters of /proc/vmstat may drift.

Each CPU counts a zone's pages for itself and adds its difference to the global counter only when that passes a
threshold. So the free-page count that a watermark check reads can be wrong by the threshold times the number of CPUs.
"""

from __future__ import annotations

from mmsim.units import PAGE_SHIFT, fls

__all__ = ["MAX_STAT_THRESHOLD", "calculate_normal_threshold", "calculate_pressure_threshold", "percpu_drift_mark"]

#: The difference lives in a signed byte: it must not overflow before it is folded in.
MAX_STAT_THRESHOLD = 125


def calculate_normal_threshold(managed_pages: int, online_cpus: int) -> int:
    """How far one CPU's difference may go while memory is plentiful: more in larger zones and with more CPUs.

    5.17: mm/vmstat.c, calculate_normal_threshold().

    >>> calculate_normal_threshold(3840, 1), calculate_normal_threshold(57030, 1)
    (2, 4)
    """
    mem = managed_pages >> (27 - PAGE_SHIFT)
    return min(MAX_STAT_THRESHOLD, 2 * fls(online_cpus) * (1 + fls(mem)))


def calculate_pressure_threshold(wmark_min: int, wmark_low: int, online_cpus: int) -> int:
    """The threshold while kswapd runs: so small that all CPUs together cannot hide the way from *low* to *min*.

    5.17: mm/vmstat.c, calculate_pressure_threshold().
    """
    return min(MAX_STAT_THRESHOLD, max(1, (wmark_low - wmark_min) // online_cpus))


def percpu_drift_mark(wmark_min: int, wmark_low: int, wmark_high: int, threshold: int, online_cpus: int) -> int:
    """Below this many free pages the counter is not trusted and the CPUs' differences are summed up; 0 if it always is.

    5.17: mm/vmstat.c, refresh_zone_stat_thresholds().
    """
    max_drift = online_cpus * threshold
    return wmark_high + max_drift if max_drift > wmark_low - wmark_min else 0
