"""Contact sheets of what the network is fed: augmented images, their boxes, and the anchors that are assigned to each.

`python -m trainer.preview --records='OUT/train-*.tfrecord' --output_dir=DIR [--num_images=24] [flags as for training]`

Writes `DIR/sheet-000.jpg` and so on, and `DIR/preview.json` with the counts of boxes, by the states that
`trainer/preview_data.py` explains. Class names that the font cannot write are drawn as numbers, whose names both
`preview.json` and the terminal show.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags as absl_flags

from input.config import InputConfig
from trainer import command, drawing, preview_sheets
from trainer.config import Config
from trainer.preview_data import DIFFICULT, MATCHED, STATES, Picture, anchor_sizes, receive

# TensorFlow, and what imports it, is imported in the functions that need it, so that `--help` answers at once.

POOR_SHARE = 0.8  # the summary gives advice if a smaller share of a class's boxes is matched


def write_preview(paths: Sequence[str], config: Config, output_dir: str, num_images: int) -> dict[str, Any]:
    """Writes contact sheets of what training on these shards feeds the network, and `preview.json`.

    Args:
      paths: shards.
      config: only `labels` and `input` are used.
      output_dir: DIR; made if need be. Sheets of an earlier call are removed.
      num_images: how many images to show.

    Returns:
      The content of `preview.json`: the counts of `summarize`, `sheets` (files in DIR), `records`, `input`
      (settings), and `legend` (the class names that are drawn as numbers, by number).

    Raises:
      ValueError: there are no records, or a set of shards is not whole.
    """
    from input import files, shards

    shards.require_whole_sets(paths)
    numbers = drawing.number_labels(config.labels)
    drawn_labels = [numbers.get(label, label) for label in config.labels]
    os.makedirs(output_dir, exist_ok=True)
    for old in glob.glob(os.path.join(glob.escape(output_dir), "sheet-[0-9][0-9][0-9].jpg")):
        os.remove(old)
    rows, columns = preview_sheets.tiles_per_sheet(config.input.image_size)
    arriving = receive(paths, config.input, num_images)
    sheets: list[str] = []
    seen: list[Picture] = []
    while group := list(itertools.islice(arriving, rows * columns)):
        indices = sorted({picture.record_index for picture in group})
        names = dict(zip(indices, shards.name_records(paths, indices)))
        tiles = [
            preview_sheets.draw_tile(picture, names[picture.record_index].image_id, drawn_labels) for picture in group
        ]
        sheets.append(f"sheet-{len(sheets):03d}.jpg")
        sheet = preview_sheets.draw_sheet(tiles, config.input)
        # Without subsampling lines of one pixel keep their colour.
        sheet.save(os.path.join(output_dir, sheets[-1]), quality=90, subsampling=0)
        seen += [picture._replace(pixels=np.zeros(0)) for picture in group]  # only the counts are still needed
    summary = {
        **summarize(seen, config),
        "sheets": sheets,
        "records": list(paths),
        "input": dataclasses.asdict(config.input),
        "legend": {number: label for label, number in numbers.items()},
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files.write_text(os.path.join(output_dir, "preview.json"), text)
    return summary


def summarize(pictures: Sequence[Picture], config: Config) -> dict[str, Any]:
    """The counts over all pictures, as `preview.json` holds them; there must be a picture.

    `matched_share` and `median_size` (square root of the area, px of the network's input) are of the boxes that are not
    difficult, None where there is none.
    """
    classes = np.concatenate([picture.classes for picture in pictures])
    states = np.concatenate([picture.states for picture in pictures])
    boxes = np.concatenate([picture.boxes for picture in pictures])
    levels = np.concatenate([picture.levels for picture in pictures])
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))

    def counts(chosen: np.ndarray) -> dict[str, Any]:
        taught = chosen & (states != DIFFICULT)
        return {
            "num_boxes": int(taught.sum()),
            **{f"num_{state}": int((chosen & (states == state)).sum()) for state in STATES},
            "matched_share": float((states[taught] == MATCHED).mean()) if taught.any() else None,
            "median_size": float(np.median(sizes[taught])) if taught.any() else None,
        }

    return {
        "num_images": len(pictures),
        **counts(np.full(len(classes), True)),
        "positive_anchors": {f"P{level}": int((levels == level).sum()) for level in config.input.anchor.levels},
        "per_class": {label: counts(classes == index) for index, label in enumerate(config.labels)},
    }


def format_summary(summary: dict[str, Any], config: InputConfig) -> str:
    """The counts as tables: a line for each class and for all, and one for each level."""
    rows = {**summary["per_class"], "all classes": summary}
    width = max(map(len, rows))
    lines = [f"{'':{width}}   boxes   matched    forced unmatched difficult   matched share   median size"]
    for label, row in rows.items():
        cells = [f"{row['num_boxes']:8d}", *(f"{row[f'num_{state}']:10d}" for state in STATES)]
        share, size = row["matched_share"], row["median_size"]
        cells += ["               -             -"] if share is None else [f"{share:16.1%}{size:11.0f} px"]
        lines.append(f"{label:{width}}{''.join(cells)}")
    lines += ["", "level   anchor sizes   positive anchors"]
    for (level, number), sizes in zip(summary["positive_anchors"].items(), anchor_sizes(config.anchor)):
        lines.append(f"{level:5}{sizes:>12} px{number:19d}")
    poor = [label for label, row in rows.items() if row["num_boxes"] and row["matched_share"] < POOR_SHARE]
    if poor:
        lines += ["", f"The anchors do not fit: {', '.join(poor)}. Choose --anchor_sizes, --anchor_scales and "]
        lines[-1] += "--aspect_ratios nearer to the boxes, or a larger --image_size."
    return "\n".join(lines)


def main() -> None:
    import flags

    FLAGS = absl_flags.FLAGS
    flags.config_from_flags()  # a wrong flag is reported before TensorFlow, which takes seconds to import
    import tensorflow as tf

    from input import shards
    from trainer import initial_weights

    tf.config.set_visible_devices([], "GPU")  # a few images do not need one, and a training run may use all its memory
    paths = shards.expand_glob(FLAGS.records)
    config = flags.config_from_flags(shards.read_labels(paths))
    if config.train.init_checkpoint:  # decides the anchors; the weights of a backbone decide nothing that is shown
        config, _ = initial_weights.prepare(config, None)
    summary = write_preview(paths, config, FLAGS.output_dir, FLAGS.num_images)
    print(f"images: {summary['num_images']}, contact sheets: {len(summary['sheets'])}, in {FLAGS.output_dir}\n")
    print(format_summary(summary, config.input))
    if summary["legend"]:
        print("Classes drawn as numbers: " + ", ".join(" ".join(item) for item in summary["legend"].items()))


if __name__ == "__main__":
    import flags

    absl_flags.adopt_module_key_flags(flags)
    absl_flags.DEFINE_list(
        "records", None, "Shards to look at: patterns such as 'OUT/train-*.tfrecord'.", required=True
    )
    absl_flags.DEFINE_string("output_dir", None, "Folder for the sheets and preview.json.", required=True)
    absl_flags.DEFINE_integer("num_images", 24, "Number of images to show.", lower_bound=1)
    command.run(main)
