"""The log of a run: one line of figures per window of steps, loss spikes, and the time spent waiting for data."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextpixel.checkpoints import Run
from nextpixel.progress import duration, is_first, say
from nextpixel.stats import outlier_limit
from nextpixel.training import distributed
from nextpixel.training.tracking import Board

SPIKE_WINDOW = 128  # lines of the log; OLMo-core's step skipping looks back over as many losses
SPIKE_LINES = 16  # needed to estimate the usual loss
SPIKE_SHARE = 0.02  # least relative height of a spike, for runs whose loss hardly varies
ESTIMATE_FROM_SECONDS = 30.0  # shorter runs get no estimate


class LogWindow:
    """The steps since the last line of log.jsonl: their losses, and the time they took.

    Each line has "waiting", the fraction of the time in which no batch was ready, and "highest_loss", that of a single
    step. A spike among the highest losses gets a line of its own, see Spikes.
    """

    def __init__(self, run: Run, board: Board, steps: int, images_per_step: int) -> None:
        self.run, self.board, self.steps, self.images_per_step = run, board, steps, images_per_step
        self.losses: list[Tensor] = []
        self.note = ""
        self._spikes = Spikes(run.read_log() if is_first() else [])
        self._lines = 0  # logged by this process
        self._started_at = self._logged_at = time.monotonic()
        self._waited = self._waited_before = self._paused = 0.0  # seconds

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude this time from speeds."""
        before = time.monotonic()
        yield
        seconds = time.monotonic() - before
        self._paused += seconds
        self._logged_at += seconds

    def mean_loss(self) -> float:
        total = sum(self.losses, torch.zeros_like(self.losses[0]))
        return distributed.mean_over_ranks([total.item()])[0] / len(self.losses)

    def log(self, done: int, loss: float, rate: float) -> None:
        """Write the line of step `done` and start a new window."""
        now, count = time.monotonic(), len(self.losses)
        seconds = now - self._logged_at
        speed = count * self.images_per_step / seconds
        highest = max(distributed.mean_over_ranks(torch.stack(self.losses).tolist()))
        self._record(
            done,
            {
                "loss": loss,
                "highest_loss": highest,
                "rate": rate,
                "images_per_second": speed,
                "waiting": self._waited / seconds,
            },
        )
        span = f"{done - count + 1:,} to {done:,}"
        if is_first() and (spike := self._spikes.found(highest)):
            self._record(done, spike)
            say(f"step {span}: loss spike, {highest:.3f} where {spike['usual_loss']:.3f} is usual")
        self._lines += 1
        left = self.steps - done
        left_seconds = left * self.images_per_step / speed
        if self._lines == 2 and left_seconds >= ESTIMATE_FROM_SECONDS:  # the first line includes compilation
            say(
                f"About {duration(left_seconds)} left for {left:,} steps, without evaluations: "
                f"{speed:,.3g} images/s over steps {span}"
            )
        self.note = f"step {done:,}, loss {loss:.3f}"
        self.losses, self._logged_at = [], now
        self._waited_before, self._waited = self._waited_before + self._waited, 0.0

    def _record(self, done: int, figures: dict[str, float]) -> None:
        if is_first():
            self.run.log({"step": done, **figures})
        self.board(done, figures)

    def report_waiting(self) -> None:
        """Print the fraction of the training time that was spent waiting for data."""
        seconds = time.monotonic() - self._started_at - self._paused
        if seconds > 0:
            say(f"Waited for data {(self._waited_before + self._waited) / seconds:.1%} of the training time")


class Spikes:
    """Detects outliers among the logged losses.

    A spike is a highest loss of a single step that lies more than six standard deviations above the usual one. Usual
    and deviation are the median and the scaled median absolute deviation of the last 128 lines, which one spike does
    not move (Leys et al. 2013); six deviations over 128 losses is OLMo-core's threshold for skipping steps (OLMo 2,
    2025, count losses at seven over 1,000 as spikes). Consecutive high losses are one spike, reported once.
    """

    def __init__(self, log: Sequence[dict[str, Any]]) -> None:
        losses = [entry["highest_loss"] for entry in log if "highest_loss" in entry]
        self.before = deque(losses, SPIKE_WINDOW)
        self.quiet = SPIKE_WINDOW  # lines since the last high loss
        for i in range(max(SPIKE_LINES, len(losses) - SPIKE_WINDOW), len(losses)):
            self._compare(losses[max(0, i - SPIKE_WINDOW) : i], losses[i])

    def found(self, loss: float) -> dict[str, float]:
        """{"spike": loss, "usual_loss": ...} if a spike begins with this line, else empty."""
        begins, usual = self._compare(self.before, loss)
        self.before.append(loss)
        return {"spike": loss, "usual_loss": usual} if begins else {}

    def _compare(self, before: Sequence[float], loss: float) -> tuple[bool, float]:
        if len(before) < SPIKE_LINES:
            return False, math.nan
        usual, limit = outlier_limit(np.array(before))
        high = loss > max(limit, usual + SPIKE_SHARE * abs(usual))
        begins = high and self.quiet >= SPIKE_LINES
        self.quiet = 0 if high else self.quiet + 1
        return begins, usual
