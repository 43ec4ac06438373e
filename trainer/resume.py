"""Which runs may be resumed with which settings, and who may train in a run's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from input import files
from trainer import checkpoints
from trainer.config import Config, flatten
from trainer.reporting import log

# The table of docs/MULTI_GPU.md: a name stands for a setting, or for all settings of a group. What is in neither list
# changes the weights, the optimizer's state, the order of the data or the schedule, and needs --override_config.
MAY_CHANGE = (
    *("detect", "input.cache_records", "input.max_damaged", "input.private_threadpool_size", "input.target_assignment"),
    *("train.epochs", "train.train_steps", "train.max_hours", "train.price_per_hour", "train.steps_per_loop"),
    *("train.log_every", "train.eval_every", "train.checkpoint_every", "train.keep_checkpoints", "train.best_metric"),
    *("train.distribution", "train.communication", "train.num_gpus", "train.logical_cpus"),
    *("train.xla", "train.compile_stages", "train.eager", "train.override_config", "train.hooks"),
    "train.profile_steps",
    *("train.patience", "train.on_non_finite", "train.max_rollbacks"),
    *("train.backbone_weights", "train.init_checkpoint"),  # read at the start of a run alone
)
# With other values the checkpoint does not fit.
MUST_STAY = ("labels", "model", "input.anchor", "train.optimizer.optimizer", "loss scaling", "averaged weights")


def require_same_run(config: Config, train_paths: Sequence[str], model_dir: str) -> list[str]:
    """Refuses to resume a run with settings or records that would change what it does from here on.

    A folder without checkpoints holds nothing that they could change.

    Returns:
      What differs and is accepted by `override_config`.

    Raises:
      ValueError: names what differs.
    """
    if not checkpoints.list_steps(model_dir) or not os.path.exists(checkpoints.config_path(model_dir)):
        return []
    was, now = (flat_settings(settings) for settings in (checkpoints.read_config(model_dir), config))
    was["records"], now["records"] = _read_records(model_dir), describe_records(train_paths)
    if was["records"] is None:  # of an earlier version
        del was["records"], now["records"]
    changed = [name for name in now if now[name] != was[name] and not _in(name, MAY_CHANGE)]
    differences = [_difference(name, was[name], now[name]) for name in changed]
    if any(_in(name, MUST_STAY) for name in changed):
        fixed = [text for name, text in zip(changed, differences) if _in(name, MUST_STAY)]
        raise ValueError(
            f"{model_dir} holds a run whose checkpoints do not fit: {'; '.join(fixed)}. "
            "Use the same settings to resume it, or another --model_dir."
        )
    if changed and not config.train.override_config:
        raise ValueError(
            f"{model_dir} holds a run with other settings: {'; '.join(differences)}. Use the same to resume it, "
            "another --model_dir for another run, or --override_config to go on with the new ones."
        )
    return differences


def write_down(config: Config, train_paths: Sequence[str], model_dir: str, *, step: int, changes: list[str]) -> None:
    """Writes `RUN/config.json` and `RUN/records.json`, and adds accepted changes to `RUN/overrides.jsonl`."""
    if changes:
        log.warning("--override_config: from step %d on with other settings: %s", step, "; ".join(changes))
        with open(os.path.join(model_dir, "overrides.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "changes": changes}) + "\n")
    checkpoints.save_config(config, model_dir)
    files.write_text(_records_path(model_dir), json.dumps(describe_records(train_paths)) + "\n")


def _in(name: str, names: Sequence[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in names)


def flat_settings(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name."""
    return {
        **flatten(dataclasses.asdict(config)),
        "loss scaling": config.train.precision == "mixed_float16",
        "averaged weights": config.train.ema_decay > 0,
    }


def _difference(name: str, was: Any, now: Any) -> str:
    if name == "records":
        kept = len(set(map(tuple, was)) & set(map(tuple, now)))
        return f"the training records were {len(was)} shards, now {len(now)}, of which {kept} are the same"
    return f"{name.rpartition('.')[2]} was {was}, now {now}"


def _records_path(model_dir: str) -> str:
    return os.path.join(model_dir, "records.json")


def describe_records(paths: Sequence[str]) -> list[list[Any]]:
    """The name and the bytes of each shard, in order; the folder may change."""
    return [[os.path.basename(path), size] for path, (size, _) in zip(paths, files.stats(paths))]


def _read_records(model_dir: str) -> Any:
    try:
        return json.loads(files.read(_records_path(model_dir)))
    except (OSError, ValueError):
        return None


def write_evaluated_step(model_dir: str, step: int) -> None:
    """Writes into `RUN/evaluated.json` that the evaluation of this step is complete."""
    files.write_text(_evaluated_path(model_dir), json.dumps({"step": step}) + "\n")


def read_evaluated_step(model_dir: str) -> int | None:
    """The step of the run's last complete evaluation, None where there was none."""
    try:
        return json.loads(files.read(_evaluated_path(model_dir)))["step"]
    except (OSError, ValueError, KeyError):
        return None


def _evaluated_path(model_dir: str) -> str:
    return os.path.join(model_dir, "evaluated.json")


@contextlib.contextmanager
def sole_trainer(model_dir: str) -> Iterator[None]:
    """Refuses a second trainer in the same folder; the kernel drops the lock with the process, however it ends.

    Where a shared folder passes locks on (NFS 4, SMB), trainers of several machines exclude each other too.

    Raises:
      ValueError: another process trains there.
    """
    os.makedirs(model_dir, exist_ok=True)
    with open(os.path.join(model_dir, "trainer.lock"), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"another run trains in {model_dir} ({file.read().strip()}): wait for its end, or use another "
                "--model_dir."
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no second run trains there", model_dir, error)
        file.truncate(0)
        now = datetime.datetime.now().isoformat(" ", "seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
        file.flush()
        yield
