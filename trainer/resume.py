"""Which runs may be resumed with which settings."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

from input import files
from trainer import checkpoints, reporting
from trainer.config import Config, flatten
from trainer.reporting import log

# The table of docs/RUNS.md: a name stands for a setting, or for all settings of a group. What is in neither list
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

_TRAINING, _VALIDATION = "training records", "validation records"  # in records.json and in messages


def require_same_run(
    config: Config, train_paths: Sequence[str], model_dir: str, *, val_paths: Sequence[str] = ()
) -> list[str]:
    """Refuses to resume a run with settings or records that would change what it does from here on.

    A folder without checkpoints holds nothing that they could change. Evaluations may begin or cease.

    Returns:
      What differs and is accepted by `override_config`.

    Raises:
      ValueError: names what differs.
    """
    if not checkpoints.list_steps(model_dir) or not files.exists(checkpoints.config_path(model_dir)):
        return []
    was, now = (flat_settings(settings) for settings in (checkpoints.read_config(model_dir), config))
    if (earlier := _read_records(model_dir).get(_TRAINING)) is not None:
        was[_TRAINING], now[_TRAINING] = earlier, describe_records(train_paths)
    if has_other_validation(val_paths, model_dir):
        was[_VALIDATION], now[_VALIDATION] = _read_records(model_dir)[_VALIDATION], describe_records(val_paths)
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


def has_other_validation(val_paths: Sequence[str], model_dir: str) -> bool:
    """Whether the run was evaluated on other records before, so that later scores cannot be compared to those."""
    earlier = _read_records(model_dir).get(_VALIDATION)
    return bool(earlier and val_paths) and earlier != describe_records(val_paths)


def write_down(
    config: Config,
    train_paths: Sequence[str],
    model_dir: str,
    *,
    step: int,
    changes: list[str],
    val_paths: Sequence[str] = (),
) -> None:
    """Writes `RUN/config.json` and `RUN/records.json`, and adds accepted changes to `RUN/overrides.jsonl`."""
    if changes:
        log.warning("--override_config: from step %d on with other settings: %s", step, "; ".join(changes))
        line = json.dumps({"step": step, "changes": changes}) + "\n"
        files.append(os.path.join(model_dir, "overrides.jsonl"), line.encode())
    checkpoints.save_config(config, model_dir)
    evaluated = describe_records(val_paths) if val_paths else _read_records(model_dir).get(_VALIDATION, [])
    records = {_TRAINING: describe_records(train_paths), _VALIDATION: evaluated}
    files.write_text(_records_path(model_dir), json.dumps(records) + "\n")


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
    if name in (_TRAINING, _VALIDATION):
        kept = len(set(map(tuple, was)) & set(map(tuple, now)))
        return f"the {name} were {len(was)} shards, now {len(now)}, of which {kept} are the same"
    return f"{name.rpartition('.')[2]} was {was}, now {now}"


def _records_path(model_dir: str) -> str:
    return os.path.join(model_dir, "records.json")


def describe_records(paths: Sequence[str]) -> list[list[Any]]:
    """The name and the bytes of each shard, in order; the folder may change."""
    return [[os.path.basename(path), size] for path, (size, _) in zip(paths, files.stats(paths))]


def _read_records(model_dir: str) -> dict[str, list[list[Any]]]:
    """What `describe_records` gave for the training and for the validation records, as far as it is known."""
    try:
        records = json.loads(files.read(_records_path(model_dir)))
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {_TRAINING: records}  # the latter from an earlier version


def set_aside(model_dir: str) -> str | None:
    """Clears a folder for a run that begins at step 0, since it holds no checkpoint of the run before.

    What that run left must not count as the new one's: its best checkpoint and metrics, its rollbacks, its time. The
    best checkpoint and evaluations are moved, with a copy of the settings that they belong to, and can still be used.

    Returns:
      The folder they are in now; None where there are none.
    """
    for name in ("evaluated.json", "records.json", "rollbacks.json", "time.json"):
        if files.exists(os.path.join(model_dir, name)):
            files.remove(os.path.join(model_dir, name))
    folders = [name for name in ("best", "eval") if files.is_dir(os.path.join(model_dir, name))]
    if not folders:
        return None
    earlier = (os.path.join(model_dir, f"earlier-{number}") for number in itertools.count(1))
    target = next(folder for folder in earlier if not files.exists(folder))
    config = checkpoints.config_path(model_dir)
    if files.exists(config):
        files.write_text(checkpoints.config_path(target), files.read(config).decode(errors="replace"))
    for folder in folders:  # file by file, since not every file system of TensorFlow moves a folder
        files.make_dirs(os.path.join(target, folder))
        for name in files.names(os.path.join(model_dir, folder)):
            files.replace(os.path.join(model_dir, folder, name), os.path.join(target, folder, name))
        files.remove_tree(os.path.join(model_dir, folder))
    return target


def write_evaluated_step(model_dir: str, step: int) -> None:
    """Writes into `RUN/evaluated.json` that the evaluation of this step is complete."""
    reporting.write_or_say(_evaluated_path(model_dir), json.dumps({"step": step}) + "\n")


def read_evaluated_step(model_dir: str) -> int:
    """The step of the run's last complete evaluation, -1 where there was none."""
    try:
        return json.loads(files.read(_evaluated_path(model_dir)))["step"]
    except (OSError, ValueError, KeyError):
        return -1


def _evaluated_path(model_dir: str) -> str:
    return os.path.join(model_dir, "evaluated.json")
