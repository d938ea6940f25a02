"""Errors, log, clock, counters, tracepoints and rules."""

import errno

import pytest

from mmsim.clock import NSEC_PER_JIFFY, Clock
from mmsim.counters import Counters
from mmsim.errors import Errno, InputError, errno_name
from mmsim.klog import KernelLog
from mmsim.rules import RELEASES, rules_for
from mmsim.trace import Trace


def test_a_failed_call_carries_its_errno():
    error = Errno("EINVAL", "size is zero")
    assert (error.number, error.name, str(error)) == (errno.EINVAL, "EINVAL", "EINVAL: size is zero")
    assert errno_name(-errno.ENOMEM) == "ENOMEM"
    with pytest.raises(ValueError, match="not an errno"):
        Errno("EWHATEVER")


def test_jiffies_tick_every_four_milliseconds():
    clock = Clock()
    clock.advance(NSEC_PER_JIFFY - 1)
    assert clock.jiffies == 0
    clock.advance(1)
    assert clock.jiffies == 1
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_the_log_shows_seconds_since_boot_and_keeps_the_newest_lines():
    clock = Clock()
    log = KernelLog(clock, capacity=10)
    clock.advance(1_285_559_000)
    log.printk("Freeing unused kernel image (initmem) memory: 980K")
    assert log.text() == "[    1.285559] Freeing unused kernel image (initmem) memory: 980K"
    for number in range(30):
        log.printk(f"line {number}")
    assert log.lines()[-1] == "line 29" and len(log) <= 11 and log.dropped + len(log) == 31


def test_a_warning_is_logged_and_the_kernel_goes_on():
    log = KernelLog(Clock())
    log.warn("WARNING: order 11 is too large")
    assert log.lines() == ["------------[ cut here ]------------", "WARNING: order 11 is too large",
                           "---[ end trace 0000000000000000 ]---"]


def test_counters_refuse_names_that_nobody_counts():
    counters = Counters()
    before = dict(counters)
    counters["pgfree"] += 3
    assert counters.since(before) == {"pgfree": 3}
    with pytest.raises(KeyError):
        counters["pgfred"] += 1


def test_tracing_is_off_until_somebody_listens():
    trace = Trace()
    assert not trace.enabled
    stop = trace.subscribe(lambda event: None)
    assert trace.enabled
    stop()
    stop()
    assert not trace.enabled


def test_two_subscriptions_of_one_listener_end_one_by_one():
    trace, seen = Trace(), []
    stop_first = trace.subscribe(seen.append)
    trace.subscribe(seen.append)
    stop_first()
    trace.emit("kmem:mm_page_free", pfn=1, order=0)
    assert len(seen) == 1


def test_a_ring_keeps_the_newest_events_and_counts_the_lost():
    trace = Trace()
    with trace.recording("kmem:*", capacity=3) as events:
        for pfn in range(5):
            trace.emit("kmem:mm_page_free", pfn=pfn, order=0)
        trace.emit("vmscan:mm_vmscan_wakeup_kswapd", nid=0)
    trace.emit("kmem:mm_page_free", pfn=9, order=0)
    assert [event["pfn"] for event in events] == [2, 3, 4]
    assert events.dropped == 2 and len(events) == 3
    with pytest.raises(ValueError, match="holds nothing"):
        trace.recording(capacity=0)


def test_an_event_prints_as_a_trace_line():
    trace = Trace()
    trace.clock.advance(2_000_001_000)
    with trace.recording() as events:
        trace.emit("kmem:mm_page_free", pfn=5, order=0)
    assert str(events[0]) == "[000]     2.000001: mm_page_free: pfn=5 order=0"


def test_each_release_has_rules_and_others_are_refused():
    assert [rules_for(release).release for release in RELEASES] == list(RELEASES)
    assert rules_for("5.17").differences(rules_for("6.1"))
    with pytest.raises(InputError, match=r"no rules for Linux 4\.19"):
        rules_for("4.19")
    with pytest.raises(InputError, match="no such rule: gravity"):
        rules_for().replace(gravity=True)
