"""Progress of an experiment: a live bar in a terminal, now and then a line in a log."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from entropy_optax.experiments.runner import Progress as RunProgress

_SECONDS_BETWEEN_LINES = 15.0


class ProgressDisplay:
    """Shows loss, gradients done, gradients per second and time left.

    Args:
      console: where to; whether it is a terminal decides the form.
      num_runs: number of runs to come.
      num_gradients: gradient evaluations per run.
      begin: of them done before, by a run that goes on.
    """

    def __init__(
        self, console: Console, num_runs: int, num_gradients: int, begin: int = 0
    ):
        self._console = console
        self._num_gradients = num_gradients
        self._total = num_runs * num_gradients
        self._live = console.is_terminal
        self._tasks: dict[tuple[str, int], TaskID] = {}
        self._validation: dict[tuple[str, int], str] = {}
        self._done: dict[tuple[str, int], int] = {}
        self._begin = begin
        self._start = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} gradients"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not self._live,
        )
        self._overall = self._bar.add_task("all runs", total=self._total, text="")

    def __enter__(self) -> "ProgressDisplay":
        """Starts the bar.

        Returns:
          Itself.
        """
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops the bar and leaves the terminal as it was."""
        self._bar.stop()

    def __call__(self, progress: RunProgress) -> None:
        """Takes in the newest state of a run.

        Args:
          progress: what the runner reports.
        """
        run = (progress.optimizer, progress.seed)
        if run not in self._tasks:
            self._tasks[run] = self._bar.add_task(
                f"{progress.optimizer}, seed {progress.seed}",
                total=self._num_gradients,
                text="",
            )
        if progress.validation is not None:
            error, loss = progress.validation
            self._validation[run] = f"  validation {error:.2f} %, {loss:.4f} nats"
        speed = progress.gradients / max(progress.seconds, 1e-9)
        text = f"loss {progress.loss:.4f}{self._validation.get(run, '')}"
        self._bar.update(
            self._tasks[run],
            completed=progress.gradients,
            text=f"{text}  {speed:.0f}/s",
        )
        self._done[run] = progress.gradients
        done = sum(self._done.values())
        self._bar.update(self._overall, completed=done)
        run_ended = progress.gradients == self._num_gradients
        if self._live:
            return
        now = time.monotonic()
        if run_ended or now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - self._start) * (self._total - done) / (done - self._begin)
            self._console.print(
                f"{progress.optimizer}, seed {progress.seed}:"
                f" {progress.gradients}/{self._num_gradients} gradients, {text},"
                f" {speed:.0f} gradients/s, about {left:.0f} s left of all runs",
                soft_wrap=True,
            )
