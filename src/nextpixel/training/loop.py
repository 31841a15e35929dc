"""The training loop: optimiser steps, checkpoints, evaluations, the log, signals.

Each kind of training passes `train` a Training: its model, batches, step and evaluation. Batches and rates are
functions of the step's number, so the last checkpoint is all that a resumed run needs.

Several processes (distributed.py) run the loop in lockstep. The first one evaluates and writes; all of them contribute
to the trainer state.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nextpixel.checkpoints import Run
from nextpixel.checkpoints.runs import milestones
from nextpixel.config import RunConfig
from nextpixel.errors import WorkError
from nextpixel.heap import freed_memory_kept
from nextpixel.progress import progress, say
from nextpixel.training import distributed, parallel
from nextpixel.training.log import LogWindow
from nextpixel.training.optim import set_rate
from nextpixel.training.parallel import load_trainer_state, save_trainer_state
from nextpixel.training.tracking import Board, boards

TRAINER = "trainer"


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the message says what is saved. The run can be resumed."""


@dataclass(frozen=True)
class Cadence:
    """How long a run is and how often it logs, evaluates and saves."""

    config: RunConfig
    steps: int
    evaluate_every_steps: int

    def log_due(self, step: int) -> bool:
        return step % self.config.log_every_steps == 0 or step == self.steps

    def checkpoint_due(self, step: int, seconds_since: float) -> bool:
        by_time = 0 < self.config.checkpoint_every_minutes * 60 <= seconds_since
        by_step = step % self.config.checkpoint_every_steps == 0 or step in milestones(self.steps)
        return by_step or by_time or self.evaluation_due(step)

    def evaluation_due(self, step: int) -> bool:
        return step > 0 and (step % self.evaluate_every_steps == 0 or step == self.steps)


@dataclass(frozen=True)
class Training:
    """What one kind of training passes to the loop."""

    cadence: Cadence
    model: nn.Module
    optimizers: Sequence[Optimizer]
    batch_at: Callable[[int], Any]
    """The batch of a step, counted from 0; called in a second thread, one step ahead."""
    step: Callable[[Any], Tensor]
    """Forward and backward on a batch; returns the mean loss, detached, of this process's part of it."""
    rate_at: Callable[[int], float]
    """The learning rate of a step, counted from 0."""
    evaluate: Callable[[int], dict[str, float]]
    """Figures to log after so many steps, `metric` among them; called in the first process."""
    write_model: Callable[[Path], None]
    """Writes the model into the folder of a checkpoint; called in all processes."""
    metric: str = "validation_nats"
    """Marks the best checkpoint by its lowest value, or its highest."""
    highest: bool = False
    patience: int | None = None
    """Ends the run after so many evaluations without improvement."""
    judge_start: bool = False
    """Evaluate the model before the first step too: it may stay the best."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]


def train(run: Run, training: Training) -> None:
    """Run optimiser steps from the last checkpoint of `run` to the end of `training`.

    Raises Interrupted after a signal, WorkError on a non-finite loss or a failed write.
    """
    cadence, images = training.cadence, training.cadence.config.batch_images
    start = distributed.on_first_rank(lambda: (run.steps() or [0])[-1])
    if start:
        _restore(run, training, start)
    distributed.on_first_rank(lambda: run.discard_after(start))
    with (
        distributed.lost_process_errors(),
        freed_memory_kept(),
        _signals() as signals,
        boards(run.path, run.facts(), start) as board,
        ThreadPoolExecutor(1) as loader,
        progress("training", cadence.steps * images, "images", start * images) as advance,
    ):

        def evaluate(done: int) -> None:
            with signals.stop_at_once():
                distributed.on_first_rank(lambda: _evaluate(run, training, done, board))

        due = cadence.evaluation_due(start) or (training.judge_start and start == 0)
        if distributed.on_first_rank(lambda: due and not _evaluated(run, training, start)):
            evaluate(start)  # the process was killed between checkpoint and evaluation
        if _out_of_patience(run, training):
            return
        window, saved_at = LogWindow(run, board, cadence.steps, images), time.monotonic()
        upcoming = loader.submit(training.batch_at, start)
        for done in range(start + 1, cadence.steps + 1):
            with window.waiting():
                batch = upcoming.result()
            if done < cadence.steps:
                upcoming = loader.submit(training.batch_at, done)
            rate = training.rate_at(done - 1)
            window.losses.append(_optimizer_step(training, batch, rate))

            log_due = cadence.log_due(done)
            # clocks and signals differ between processes; a signal after this line waits for the next step
            save_due = cadence.checkpoint_due(done, time.monotonic() - saved_at)
            stop, save_due = distributed.any_true(signals.received, save_due or signals.received)
            if log_due or save_due:
                loss = window.mean_loss()
                if not math.isfinite(loss):
                    raise _non_finite(run, done)
                if log_due:
                    window.log(done, loss, rate)
            advance(images, window.note)
            if save_due:
                _save(run, training, done)
                saved_at = time.monotonic()
            if stop:
                raise Interrupted(f"stopped and saved at step {done:,}")
            if cadence.evaluation_due(done):
                with window.paused():
                    evaluate(done)
                if _out_of_patience(run, training):
                    metric = training.metric.replace("_", " ")
                    say(f"no better {metric} in {training.patience} evaluations: done at step {done:,}")
                    break
        if start < cadence.steps:
            window.report_waiting()


def _optimizer_step(training: Training, batch: Any, rate: float) -> Tensor:
    """One update of the weights; returns the loss before it."""
    set_rate(training.optimizers, rate)
    for optimizer in training.optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss = training.step(batch)
    if clip_norm := training.cadence.config.clip_norm:
        nn.utils.clip_grad_norm_(training.parameters, clip_norm)
    for optimizer in training.optimizers:
        optimizer.step()
    return loss


def _restore(run: Run, training: Training, step: int) -> None:
    def read() -> None:
        with run.checkpoint(step) as folder:
            load_trainer_state(folder / TRAINER, training.model, training.optimizers)

    distributed.on_all_ranks(read)


def _save(run: Run, training: Training, done: int) -> None:
    if not parallel.is_finite(training.parameters):
        raise _non_finite(run, done)

    def write() -> None:
        training.write_model(part)
        save_trainer_state(part / TRAINER, training.model, training.optimizers)

    with contextlib.ExitStack() as stack:  # entered and closed in the first process; all write into the folder
        new = run.new_checkpoint(done, training.cadence.steps)
        part = distributed.on_first_rank(lambda: stack.enter_context(new))
        distributed.on_all_ranks(write)
        distributed.on_first_rank(stack.close)


def _evaluate(run: Run, training: Training, done: int, board: Board) -> None:
    figures = training.evaluate(done)
    if not all(map(math.isfinite, figures.values())):
        raise _non_finite(run, done)
    if (value := figures.get(training.metric)) is not None:
        run.update_best(done, training.metric.removeprefix("validation_"), value, highest=training.highest)
    run.log({"step": done, **figures})  # last: this line marks the evaluation as complete
    board(done, figures)


def _evaluated(run: Run, training: Training, step: int) -> bool:
    return any(entry.get("step") == step and training.metric in entry for entry in run.read_log())


def _out_of_patience(run: Run, training: Training) -> bool:
    def evaluations_since_best() -> int:
        best = run.best().get("step", math.inf)  # a branch has evaluations of its run before its own
        return sum(training.metric in entry and entry["step"] > best for entry in run.read_log())

    patience = training.patience
    return patience is not None and distributed.on_first_rank(lambda: evaluations_since_best() >= patience)


def _non_finite(run: Run, step: int) -> WorkError:
    good = [saved for saved in run.steps() if saved < step]
    last = f"the last good checkpoint is {run.folder(good[-1])}" if good else "no checkpoint had been written"
    option = {"pretrain": "init", "finetune": "model"}.get(run.kind)
    continues = f" (`{option}` takes that checkpoint)" if option and good else ""
    return WorkError(
        f"the loss or a weight stopped being a finite number by step {step}; {last}. Start again with a lower "
        f"`learning_rate`, a longer `warmup_steps`, or `clip_norm=1`{continues}"
    )


AT_ONCE = "stopped at once; steps since the last checkpoint are lost"


class _Signals:
    """SIGINT and SIGTERM ask the loop to save and stop; a second one stops at once."""

    def __init__(self) -> None:
        self.received = False
        self._saved = False

    def handle(self, *_: object) -> None:
        if self._saved:
            raise Interrupted("stopped; all steps are saved")
        if self.received:
            raise Interrupted(AT_ONCE)
        self.received = True
        with contextlib.suppress(OSError, RuntimeError):  # stderr may be closed, or in the middle of a line
            say("stopping as soon as this step is done and saved; a second signal stops at once")

    @contextlib.contextmanager
    def stop_at_once(self) -> Iterator[None]:
        """While all steps are saved, the first signal stops at once, even one received before."""
        self._saved = True
        try:
            if self.received:
                self.handle()
            yield
        finally:
            self._saved = False


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():  # only the main thread can install handlers
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    except RuntimeError as error:
        # Ctrl-C also reaches the compiler's subprocesses in the first step: their failure is the interruption
        if signals.received and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise Interrupted(AT_ONCE) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
