"""The one training loop: cadence, signals, resumption, non-finite losses, progress.

Pretraining and every other kind of training give it a `step` that runs forward and backward on a batch. Batches
are a function of the step's number, and so is the rate: what a run needs to go on is its last checkpoint.

Several processes (distributed.py) walk through the loop in step. The first one alone evaluates and writes, but for the
trainer's state, which comes from all.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nextpixel.checkpoints import Run
from nextpixel.checkpoints.runs import milestones
from nextpixel.config import RunConfig
from nextpixel.errors import WorkError
from nextpixel.progress import duration, is_first, progress, say
from nextpixel.stats import outlier_limit
from nextpixel.training import distributed
from nextpixel.training.distributed import load_trainer_state, save_trainer_state
from nextpixel.training.optim import set_rate
from nextpixel.training.tracking import boards

TRAINER = "trainer"
SPIKE_WINDOW = 128  # lines of the log; OLMo-core's step skipping looks back over as many losses
SPIKE_LINES = 16  # before there is a usual loss to tell a spike from
ESTIMATE_FROM_SECONDS = 30.0  # shorter work needs no estimate
SPIKE_SHARE = 0.02  # above the usual loss, at least: steadier losses than that have no spikes


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the message says what is saved. The run can go on."""


@dataclass(frozen=True)
class Cadence:
    steps: int
    log_every_steps: int
    evaluate_every_steps: int
    checkpoint_every_steps: int
    checkpoint_every_minutes: float

    @classmethod
    def of(cls, config: RunConfig, *, steps: int, evaluate_every_steps: int) -> Cadence:
        """That of a run's settings, for those to which steps and evaluations mean different things."""
        return cls(
            steps,
            config.log_every_steps,
            evaluate_every_steps,
            config.checkpoint_every_steps,
            config.checkpoint_every_minutes,
        )

    def checkpoint_due(self, step: int, seconds_since: float) -> bool:
        by_time = 0 < self.checkpoint_every_minutes * 60 <= seconds_since
        by_step = step % self.checkpoint_every_steps == 0 or step in milestones(self.steps)
        return by_step or by_time or self.evaluation_due(step)

    def evaluation_due(self, step: int) -> bool:
        return step > 0 and (step % self.evaluate_every_steps == 0 or step == self.steps)


def train(
    run: Run,
    cadence: Cadence,
    *,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    batch_at: Callable[[int], Any],
    step: Callable[[Any], Tensor],
    rate_at: Callable[[int], float],
    evaluate: Callable[[int], dict[str, float]],
    write_model: Callable[[Path], None],
    images_per_step: int,
    clip_norm: float = 0.0,
    figure: str = "validation_nats",
    highest: bool = False,
    patience: int | None = None,
) -> None:
    """Run optimiser steps from the last checkpoint of `run` to `cadence.steps`.

    Each line of log.jsonl tells "waiting", the share of the time since the one before in which no batch was ready, and
    "highest_loss", that of a single step since then; a spike among these has a line of its own, see Spikes.

    batch_at(i)      the batch of step i, counted from 0; called in a second thread, one step ahead
    step(batch)      forward and backward; returns the mean loss, detached, of this process's part of the batch
    evaluate(i)      after i steps: {figure: ...}, logged; the lowest, or the highest, marks the best checkpoint; called
                     in the first process
    write_model(f)   writes the model into the folder f of a checkpoint; called in all processes
    patience         ends the run after so many evaluations that were no better

    Raises Interrupted after a signal, WorkError on a non-finite loss or a failed write.
    """
    start = distributed.on_first_rank(lambda: (run.steps() or [0])[-1])

    def restore() -> None:
        with run.checkpoint(start) as folder:
            load_trainer_state(folder / TRAINER, model, optimizers)

    if start:
        distributed.on_all_ranks(restore)
    distributed.on_first_rank(lambda: run.forget_after(start))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def save(done: int) -> None:
        if not distributed.is_finite(parameters):
            raise _non_finite(run, done)

        def write() -> None:
            write_model(part)
            save_trainer_state(part / TRAINER, model, optimizers)

        with contextlib.ExitStack() as folder:  # opened and closed in the first process, filled by all
            part = distributed.on_first_rank(lambda: folder.enter_context(run.new_checkpoint(done, cadence.steps)))
            distributed.on_all_ranks(write)
            distributed.on_first_rank(folder.close)

    def evaluate_now(done: int) -> None:
        with signals.at_once():
            distributed.on_first_rank(lambda: judge(done))

    def judge(done: int) -> None:
        figures = evaluate(done)
        if not all(map(math.isfinite, figures.values())):
            raise _non_finite(run, done)
        if figure in figures:
            run.offer_best(done, figure.removeprefix("validation_"), figures[figure], highest=highest)
        run.log({"step": done, **figures})  # last: with this line the evaluation counts as done
        board(done, figures)

    def enough() -> bool:
        return distributed.on_first_rank(has_enough)

    def has_enough() -> bool:
        since = sum(figure in entry and entry["step"] > run.best().get("step", 0) for entry in run.read_log())
        return patience is not None and since >= patience

    with (
        distributed.lost_process_errors(),
        _signals() as signals,
        boards(run.path, run.facts(), start) as board,
        ThreadPoolExecutor(1) as ahead,
        progress("training", cadence.steps * images_per_step, "images", start * images_per_step) as advance,
    ):
        if distributed.on_first_rank(lambda: cadence.evaluation_due(start) and not _evaluated(run, start, figure)):
            evaluate_now(start)  # it was killed between checkpoint and figures
        if enough():
            return
        began_at = saved_at = logged_at = time.monotonic()
        waited = waited_in_all = elsewhere = 0.0  # seconds: for batches since the last line, and ever; evaluating
        total, losses, counted = torch.zeros((), device=parameters[0].device), [], 0
        spikes = Spikes(run.read_log() if is_first() else [])
        lines, told = 0, False  # logged in this process; whether the time was said
        following, note = ahead.submit(batch_at, start), ""
        for done in range(start + 1, cadence.steps + 1):
            before = time.monotonic()
            batch = following.result()
            waited += time.monotonic() - before
            if done < cadence.steps:
                following = ahead.submit(batch_at, done)
            rate = rate_at(done - 1)
            set_rate(optimizers, rate)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            losses.append(step(batch))
            total += losses[-1]
            counted += 1
            if clip_norm:
                nn.utils.clip_grad_norm_(parameters, clip_norm)
            for optimizer in optimizers:
                optimizer.step()

            log_due = done % cadence.log_every_steps == 0 or done == cadence.steps
            due = cadence.checkpoint_due(done, time.monotonic() - saved_at)  # clocks differ, and signals may miss some
            stop, due = distributed.any_true(signals.came, due)  # asked once: a signal after this waits for the next
            save_due = stop or due
            if log_due or save_due:
                loss = distributed.mean_over_ranks([total.item()])[0] / counted
                if not math.isfinite(loss):
                    raise _non_finite(run, done)
            if log_due:
                now = time.monotonic()
                speed = counted * images_per_step / (now - logged_at)
                peak = max(distributed.mean_over_ranks(torch.stack(losses).tolist()))
                figures = {
                    "loss": loss,
                    "highest_loss": peak,
                    "rate": rate,
                    "images_per_second": speed,
                    "waiting": waited / (now - logged_at),
                }
                waited_in_all, waited = waited_in_all + waited, 0.0
                if is_first():
                    run.log({"step": done, **figures})
                board(done, figures)
                if is_first() and (spike := spikes.found(peak)):
                    run.log({"step": done, **spike})
                    board(done, spike)
                    usual = spike["usual_loss"]
                    say(f"step {done - counted + 1:,} to {done:,}: loss spike, {peak:.3f} where {usual:.3f} is usual")
                lines, left = lines + 1, (cadence.steps - done) * images_per_step / speed
                if lines > 1 and not told:  # the first ones compile and warm up
                    told = True
                    if left >= ESTIMATE_FROM_SECONDS:
                        say(
                            f"About {duration(left)} left for {cadence.steps - done:,} steps, without evaluations: "
                            f"{speed:,.3g} images/s over steps {done - counted + 1:,} to {done:,}"
                        )
                total, losses, counted, logged_at = torch.zeros_like(total), [], 0, now
                note = f"step {done:,}, loss {loss:.3f}"
            advance(images_per_step, note)
            if save_due:
                save(done)
                saved_at = time.monotonic()
            if stop:
                raise Interrupted(f"stopped and saved at step {done:,}")
            if cadence.evaluation_due(done):
                before = time.monotonic()
                evaluate_now(done)
                elsewhere += time.monotonic() - before
                logged_at += time.monotonic() - before
                if enough():
                    say(f"no better {figure.replace('_', ' ')} in {patience} evaluations: done at step {done:,}")
                    break
        seconds = time.monotonic() - began_at - elsewhere
        if start < cadence.steps and seconds > 0:
            say(f"Batches were waited for during {(waited_in_all + waited) / seconds:.1%} of the training time")


class Spikes:
    """Which logged losses stand out from those before.

    A spike is a highest loss of a single step that lies more than six standard deviations over the usual one. Usual and
    deviation are the median and the scaled median absolute deviation of the last 128 lines, which one spike does not
    move (Leys et al. 2013); six deviations over 128 losses is what OLMo-core skips steps at (OLMo 2, 2025, count the
    losses at seven over 1,000 as spikes). As long as losses stand out it is the same spike, and told once.
    """

    def __init__(self, log: Sequence[dict[str, Any]]) -> None:
        found = [entry["highest_loss"] for entry in log if "highest_loss" in entry]
        self.before = deque(found, SPIKE_WINDOW)
        self.quiet = SPIKE_WINDOW  # lines since one stood out
        for place in range(max(SPIKE_LINES, len(found) - SPIKE_WINDOW), len(found)):
            self._judge(found[max(0, place - SPIKE_WINDOW) : place], found[place])

    def found(self, loss: float) -> dict[str, float]:
        """{"spike": that loss, "usual_loss": ...} where a spike begins with this line; else nothing."""
        begins, usual = self._judge(self.before, loss)
        self.before.append(loss)
        return {"spike": loss, "usual_loss": usual} if begins else {}

    def _judge(self, before: Sequence[float], loss: float) -> tuple[bool, float]:
        if len(before) < SPIKE_LINES:
            return False, math.nan
        usual, limit = outlier_limit(np.array(before))
        out = loss > max(limit, usual + SPIKE_SHARE * abs(usual))
        begins = out and self.quiet >= SPIKE_LINES
        self.quiet = 0 if out else self.quiet + 1
        return begins, usual


def _evaluated(run: Run, step: int, figure: str) -> bool:
    return any(entry.get("step") == step and figure in entry for entry in run.read_log())


def _non_finite(run: Run, step: int) -> WorkError:
    good = [saved for saved in run.steps() if saved < step]
    last = f"the last good checkpoint is {run.folder(good[-1])}" if good else "no checkpoint had been written"
    return WorkError(
        f"the loss or a weight stopped being a finite number by step {step}; {last}. Start again with a lower "
        "`learning_rate`, a longer `warmup_steps`, or `clip_norm=1` (`init` takes that checkpoint)"
    )


AT_ONCE = "stopped at once; steps since the last checkpoint are lost"


class _Signals:
    """SIGINT and SIGTERM ask the loop to save and stop; a second one stops at once."""

    def __init__(self) -> None:
        self.came = False
        self._saved = False

    def handle(self, *_: object) -> None:
        if self._saved:
            raise Interrupted("stopped; all steps are saved")
        if self.came:
            raise Interrupted(AT_ONCE)
        self.came = True
        with contextlib.suppress(OSError, RuntimeError):  # stderr may be closed, or in the middle of a line
            say("stopping as soon as this step is done and saved; a second signal stops at once")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """All steps are saved: the first signal, which may have come already, need not wait."""
        self._saved = True
        try:
            if self.came:
                self.handle()
            yield
        finally:
            self._saved = False


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    except RuntimeError as error:
        # Ctrl-C goes to the compiler of the first step too: what it breaks off there is what was asked for
        if signals.came and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise Interrupted(AT_ONCE) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
