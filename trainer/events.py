"""The events of a run, and who is told of them: our own reports, and the classes that `--hooks` names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from trainer.reporting import log


class Hook:
    """Is told what happens in a run; a subclass overrides the events that it wants to know.

    Every event is a dict of plain Python values: numbers, texts, lists and dicts. Of several workers only the chief has
    hooks. An error in `on_start` ends the run; an error in another method is logged, and the run goes on.
    """

    def on_start(self, event: dict[str, Any]) -> None:
        """Before the first step: `model_dir`, `step`, `train_steps` (at which the run ends), `num_images`,
        `batch_size`, `num_replicas`, `train_records` and `val_records` (the shards), and `config`, which is the content
        of `RUN/config.json`.
        """

    def on_log(self, event: dict[str, Any]) -> None:
        """After every `--log_every` steps, a line of `metrics.jsonl`: `step`, means over these steps, `train_steps`
        (which `--max_hours` changes), `hours` and `hours_left`; with `--price_per_hour` `cost` and `cost_left` too.
        """

    def on_evaluate(self, event: dict[str, Any]) -> None:
        """After an evaluation: `step`, all that the evaluation gives, as in `RUN/best/metrics.json`, and `samples`:
        a few images with their objects and detections, as `samples.choose` describes them.
        """

    def on_save(self, event: dict[str, Any]) -> None:
        """After a checkpoint is written: `step`, `path` (without the ending of its files), `is_best`."""

    def on_rollback(self, event: dict[str, Any]) -> None:
        """When the run goes back (`--on_non_finite=rollback`) to `step`, from `bad_step`, with `rate_factor` of the
        learning rate; what was reported of the steps between is void.
        """

    def on_end(self, event: dict[str, Any]) -> None:
        """When the run ends after its start, in any way but a kill: `step`, `train_steps`, `metrics` (of the last
        evaluation), `stopped_by` (the number of a signal, or None) and `error` (its message, or None).
        """


def load_hooks(names: Sequence[str]) -> list[Hook]:
    """An object of each class in `names`, which are written MODULE:CLASS.

    Raises:
      ValueError: a class cannot be imported, or is no `Hook`.
    """
    hooks = []
    for name in names:
        module, _, kind_name = name.partition(":")
        try:
            kind = getattr(importlib.import_module(module), kind_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"--hooks={name}: {error}. Write MODULE:CLASS, and put the module's folder into PYTHONPATH."
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Hook)):
            raise ValueError(f"--hooks={name}: the class must be derived from trainer.events.Hook.")
        hooks.append(kind())
    return hooks


class Events:
    """Tells all hooks, in their order, of each event."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = hooks
        self._failing: set[tuple[Hook, str]] = set()  # methods; each says it once, until it works again
        self._started: list[Hook] = []

    def tell(self, name: str, **event: Any) -> None:
        """Calls the method of this name with `event`; after `on_start` only those of hooks that have started."""
        for hook in self._hooks if name == "on_start" else self._started:
            try:
                getattr(hook, name)(dict(event))
                self._failing.discard((hook, name))
                if name == "on_start":
                    self._started.append(hook)
            except Exception as error:
                if name == "on_start":
                    raise
                if (hook, name) not in self._failing:
                    reason = str(error).partition("\n")[0]
                    log.error("%s.%s failed (%s); the run goes on", type(hook).__name__, name, reason)
                    log.debug("where:", exc_info=True)
                self._failing.add((hook, name))
