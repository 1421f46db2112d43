"""Throughput and latency of a command that generates."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

#: Latencies are told apart where they differ by this factor.
_STEP = 1.01


class Latencies:
    """Seconds, of which only a histogram is kept: its size does not grow with their number."""

    def __init__(self) -> None:
        self._found: Counter[int] = Counter()

    def add(self, seconds: float, number: int = 1) -> None:
        """Take in ``number`` latencies of ``seconds``."""
        self._found[math.ceil(math.log(max(seconds, 1e-6), _STEP))] += number

    def percentile(self, share: float) -> float:
        """What this share (0 to 1) of all latencies is not above, to within 1 %; 0 where there are none."""
        left = share * self._found.total()
        for step, number in sorted(self._found.items()):
            left -= number
            if left <= 0:
                return float(_STEP**step)
        return 0.0


class Timing:
    """How long it took: ``seconds`` of work, waiting for input not included, and the latency of each sentence.

    That is the time from when a line was read, or the rows of a split were begun with, to when its output was written.
    ``counts`` are those of `cktk.generation.translator.Counts`, summed up.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self.latencies = Latencies()
        self._last = 0.0

    def add(self, started: float, read: Sequence[float], counts: Mapping[str, int]) -> None:
        """Sentences that were ``read`` and ``started`` then (s, `time.perf_counter`) are written now."""
        now = time.perf_counter()
        # Windows may overlap where processes work side by side.
        self.seconds += now - max(started, self._last)
        self._last = now
        self.counts.update(counts)
        for when, number in Counter(read).items():
            self.latencies.add(now - when, number)

    def report(self) -> None:
        """Tell on stderr what was done, how fast, and what was unusual."""
        summary(self.counts, self.seconds)
        if self.counts["sentences"]:
            shares = (("median", 0.5), ("90 %", 0.9), ("99 %", 0.99))
            told = ", ".join(f"{name} {self.latencies.percentile(share):.3f} s" for name, share in shares)
            print(f"latency of a sentence: {told}", file=sys.stderr)


def summary(counts: Mapping[str, int], seconds: float) -> None:
    """Tell on stderr what was done in ``seconds``, and what was unusual."""
    sentences, tokens = (counts[name] / max(seconds, 1e-9) for name in ("sentences", "tokens"))
    speed = f"{sentences:.1f} sentences/s, {tokens:.0f} tokens/s"
    print(f"{counts['sentences']} sentences in {seconds:.1f} s ({speed})", file=sys.stderr)
    if counts["truncated"]:
        print(f"warning: {counts['truncated']} sources were over-long and cut", file=sys.stderr)
    if counts["empty"]:
        print(f"warning: {counts['empty']} blank sources gave blank outputs", file=sys.stderr)
