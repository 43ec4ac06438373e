"""What the workers of a run on several machines agree on, and what is said when one of them is lost."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from trainer import checkpoints, resume
from trainer.config import Config
from trainer.reporting import log

# What collectives end with when a worker is lost: its connection breaks, or, if its machine is gone, TensorFlow misses
# its heartbeat for ten seconds.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)


class Workers:
    """The workers of a run; a run on one machine is one worker, which agrees with itself.

    Args:
      strategy: that of the run.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self._num_local_replicas = len(strategy.extended.worker_devices)
        self.num = strategy.num_replicas_in_sync // self._num_local_replicas
        self._rows = tf.function(self._sum_rows)

    def gather(self, *values: float) -> np.ndarray:
        """The values of each worker, f64 [w, n], the same in all of them.

        All workers must call it at the same point of the run, since each waits for the others.
        """
        if self.num == 1:
            return np.array([values], np.float64)
        return self._rows(tf.constant(values, tf.float64)).numpy()

    def all(self, value: bool) -> bool:
        """Whether the value is true in every worker; each waits for the others, as in `gather`."""
        return bool(self.gather(value).all())

    def first(self, value: float | None) -> float | None:
        """The value of worker 0, in all workers; each waits for the others, as in `gather`."""
        if self.num == 1:
            return value
        first = float(self.gather(math.nan if value is None else value)[0, 0])
        return None if math.isnan(first) else first

    def require_same_step(self, step: int, model_dir: str) -> None:
        """Refuses workers that have restored different steps, since not all of them see the same folder.

        Raises:
          ValueError: names the workers.
        """
        steps = self.gather(step)[:, 0].astype(int).tolist()
        others = [f"worker {index} at step {other}" for index, other in enumerate(steps) if other != steps[0]]
        if others:
            raise ValueError(
                f"worker 0 resumes at step {steps[0]}, but {', '.join(others)}: --model_dir={model_dir} must be a "
                "folder that all workers see."
            )

    def _sum_rows(self, values: tf.Tensor) -> tf.Tensor:
        """Each worker's row, as a sum of matrices that are zero in the others' rows."""

        def in_replica() -> tf.Tensor:
            replicas = tf.distribute.get_replica_context()
            replica = replicas.replica_id_in_sync_group
            worker = tf.where(replica % self._num_local_replicas == 0, replica // self._num_local_replicas, -1)
            rows = tf.one_hot(worker, self.num, dtype=tf.float64)[:, tf.newaxis] * values  # -1: zeros only
            return replicas.all_reduce(tf.distribute.ReduceOp.SUM, rows)

        return self._strategy.experimental_local_results(self._strategy.run(in_replica))[0]


def require_same_command(config: Config, train_paths: Sequence[str], val_paths: Sequence[str]) -> None:
    """Refuses workers that were started with other flags, other records or other code. The strategy must exist.

    It is no collective, because those fail without a clear message where workers differ in their number of devices.

    Raises:
      ValueError: names what differs, and on which workers.
    """
    if config.train.distribution != "multi_worker":
        return
    facts = {
        **resume.flat_settings(config),
        "records": resume.describe_records(train_paths),
        "validation records": resume.describe_records(val_paths),
        **_describe_code(),
    }
    own, names = _own_name(), _names()
    service = context.context()
    service.set_config_key_value(f"retinanet/{own}", json.dumps(facts))
    found = {name: json.loads(service.get_config_key_value(f"retinanet/{name}")) for name in names}
    first = found[names[0]]
    differences = [
        f"{fact} on {name}"
        for name, other in found.items()
        for fact in {**first, **other}
        if other.get(fact) != first.get(fact)
    ]
    if differences:
        raise ValueError(
            f"not all workers were started as {names[0]} was: {', '.join(differences)}. Give them the same command, "
            "records and version of this program."
        )


def _own_name() -> str:
    """Such as "worker 1", as in TF_CONFIG."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    return f"{resolver.task_type} {resolver.task_id}"


def _names() -> list[str]:
    """Those of all workers, the one that writes the run's files first."""
    jobs = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec().as_dict()
    return [f"{job} {index}" for job in ("chief", "worker") for index in range(len(jobs.get(job, [])))]


def _describe_code() -> dict[str, Any]:
    """The version of TensorFlow, and a checksum for each of this program's files."""
    root = pathlib.Path(__file__).parent.parent
    paths = [path for folder in ("input", "model", "trainer") for path in sorted((root / folder).glob("*.py"))]
    return {
        "TensorFlow": tf.__version__,
        **{str(path.relative_to(root)): zlib.crc32(path.read_bytes()) for path in paths},
    }


@contextlib.contextmanager
def naming_lost_worker(model_dir: str) -> Iterator[None]:
    """Says that a worker is lost, in place of TensorFlow's error.

    Raises:
      ConnectionError: names the worker, and the step at which a new start resumes.
    """
    try:
        yield
    except _LOST as error:
        named = re.findall(r"/job:(chief|worker)/(?:replica:\d+/)?task:(\d+)", str(error))
        lost = [name for name in map(" ".join, named) if name != _own_name()]
        if not lost:
            raise
        log.debug("where:", exc_info=True)
        step = max(checkpoints.list_steps(model_dir), default=0)
        raise ConnectionError(
            f"{lost[0]} is lost: its process has ended or its machine does not answer; its own log may "
            "say why. Start all workers again with the same command: they resume from "
            f"step {step}."
        ) from error
