"""`--profile_steps`: a trace of a few steps, for TensorBoard's profiler."""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from trainer.config import TrainConfig
from trainer.events import Hook
from trainer.reporting import log


class Profile(Hook):
    """Traces the steps of `profile_steps` into `RUN/events`; the loop must return at both of its ends."""

    def __init__(self, config: TrainConfig) -> None:
        self._ends = config.profiled_steps()
        self._folder = ""  # of several workers one traces, but all loops return at the same steps
        self._is_tracing = False

    def on_start(self, event: dict[str, Any]) -> None:
        self._folder = os.path.join(event["model_dir"], "events")

    def limit(self, step: int, target: int) -> int:
        """The step at which a loop from `step` returns that would otherwise go on to `target`."""
        return min([target, *(end for end in self._ends if end > step)])

    def before_loop(self, step: int) -> None:
        if self._folder and step in self._ends[:1] and not self._is_tracing:  # a rollback may come here again
            tf.profiler.experimental.start(self._folder)
            self._is_tracing = True

    def after_loop(self, step: int) -> None:
        if step in self._ends[1:]:
            self._stop()

    def on_end(self, event: dict[str, Any]) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._is_tracing:
            self._is_tracing = False
            try:
                tf.profiler.experimental.stop()
            except tf.errors.OpError as error:
                log.error("the profile cannot be written (%s); the run goes on", error.message)
                return
            log.info("the profile is in %s: pip install tensorboard-plugin-profile shows it", self._folder)
