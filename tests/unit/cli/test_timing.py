"""Throughput and latency."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cktk_cli import timing
from cktk_cli.timing import Latencies, Timing


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_percentiles(seconds: list[float], share: float) -> None:
    found = Latencies()
    for one in seconds:
        found.add(one)
    exact = next(one for one in sorted(seconds) if sum(other <= one for other in seconds) >= share * len(seconds))
    assert exact * (1 - 1e-9) <= found.percentile(share) <= exact * 1.0101


def test_memory_does_not_grow() -> None:
    found = Latencies()
    found.add(0.5, 10**9)
    found.add(0.0)
    found.add(7.0, 10**8)
    assert len(found._found) == 3
    assert 0.5 <= found.percentile(0.9) <= 0.505 and 7.0 <= found.percentile(0.99) <= 7.07
    assert Latencies().percentile(0.5) == 0.0


def test_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([12.0, 14.0, 101.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    told = Timing()
    counts = {"sentences": 2, "tokens": 15, "empty": 1, "truncated": 0}
    told.add(10.0, [9.0, 10.0], counts)  # worked on from 10 to 12
    told.add(11.0, [10.0, 10.0], counts)  # side by side with it, up to 14
    told.add(100.0, [100.0, 100.0], {**counts, "truncated": 2})  # there was nothing to do from 14 to 100
    told.report()
    assert told.seconds == 5.0
    assert capsys.readouterr().err.splitlines() == [
        "6 sentences in 5.0 s (1.2 sentences/s, 9 tokens/s)",
        "warning: 2 sources were over-long and cut",
        "warning: 3 blank sources gave blank outputs",
        "latency of a sentence: median 2.007 s, 90 % 4.027 s, 99 % 4.027 s",
    ]
    Timing().report()
    assert capsys.readouterr().err == "0 sentences in 0.0 s (0.0 sentences/s, 0 tokens/s)\n"
