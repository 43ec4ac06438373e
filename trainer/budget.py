"""What the parts of a run take, which number of steps fits into the time rented, and what that costs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable

from input import files
from trainer import reporting

_MARGIN = 0.01  # of the whole time: what is left unplanned, since no two evaluations take equally long


class Budget:
    """Measures steps, evaluations and checkpoints, and estimates from them how long the rest of a run takes.

    `RUN/time.json` keeps the measurements and the time used, so that they outlive the process.

    Args:
      model_dir: RUN.
      evaluation_steps: how many training steps an evaluation is taken to last until one is measured.
      clock: gives seconds.
    """

    def __init__(
        self, model_dir: str, *, evaluation_steps: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = os.path.join(model_dir, "time.json")
        self._evaluation_steps, self._clock = evaluation_steps, clock
        self._times: dict[str, float] = {}  # seconds of the last step, evaluation and saving
        earlier = {}
        if files.exists(self._path):
            with contextlib.suppress(ValueError):  # damaged: the time is then counted from now on
                earlier = json.loads(files.read(self._path))
        self._began = clock()  # in this process
        self._started = self._began - earlier.pop("seconds", 0.0)
        self._times.update(earlier)
        self._num_steps, self._steps_s = 0, 0.0

    @property
    def seconds(self) -> float:
        """How long the run has gone on, over all its processes."""
        return self._clock() - self._started

    @property
    def is_measured(self) -> bool:
        """Whether it is known how long a step takes."""
        return "step" in self._times

    def forget_earlier(self) -> None:
        """Counts the time from the start of this process on: what `RUN/time.json` tells is of another run."""
        self._started, self._times = self._began, {}

    def set_time(self, part: str, seconds: float) -> None:
        """Notes how long the last `evaluation` or `saving` took."""
        self._times[part] = seconds

    def add_steps(self, num_steps: int, seconds: float) -> None:
        """Counts steps into the mean of this process."""
        self._num_steps += num_steps
        self._steps_s += seconds
        self._times["step"] = self._steps_s / self._num_steps

    def seconds_left(self, step: int, last_step: int, eval_every: int, save_every: int) -> float:
        """How long a run that has done `step` steps takes to its last one, with what is due at both and between."""
        of_step, of_evaluation, of_saving = self._estimates()

        def times_due(every: int) -> int:
            return math.ceil(last_step / every) - max(step - 1, 0) // every

        seconds = (last_step - step) * of_step
        return seconds + times_due(eval_every) * of_evaluation + times_due(save_every) * of_saving

    def last_step_within(self, hours: float, step: int, eval_every: int, save_every: int) -> int:
        """The last step of a run that has done `step` steps and may take so many hours as a whole."""
        left = hours * 3600 * (1 - _MARGIN) - self.seconds
        first, last = step, step + max(0, int(left / max(self._times["step"], 1e-9)))
        while first < last:  # the time grows with the step, so the interval is halved
            middle = (first + last + 1) // 2
            if self.seconds_left(step, middle, eval_every, save_every) <= left:
                first = middle
            else:
                last = middle - 1
        return first

    def _estimates(self) -> tuple[float, float, float]:
        """The seconds of a step, of an evaluation and of saving."""
        step = self._times.get("step", 0.0)
        return step, self._times.get("evaluation", self._evaluation_steps * step), self._times.get("saving", 0.0)

    def write(self) -> None:
        reporting.write_or_say(self._path, json.dumps({"seconds": self.seconds, **self._times}) + "\n")
