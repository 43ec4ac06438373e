"""Contact sheets of what the network is fed: augmented images, their boxes, and the anchors that answer for each box.

`python -m trainer.preview --records='OUT/train-*.tfrecord' --output_dir=DIR [--num_images=24] [flags as for training]`

Writes `DIR/sheet-000.jpg` and so on, and `DIR/preview.json` with the counts. Every box has one of four states:

- matched: an anchor answers for it whose IoU with it reaches `--positive_iou`;
- forced: only the anchor that fits it best answers, and that one is below the threshold;
- unmatched: no anchor answers, since another box has taken the one that fits best; the network never learns it;
- difficult: marked so in the data; it is left out of training on purpose.
"""

import colorsys
import dataclasses
import functools
import glob
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import app
from absl import flags as absl_flags
from PIL import Image, ImageDraw, ImageFont

from input.anchors import grid_sizes, make_anchors
from input.config import AnchorConfig, InputConfig
from trainer.config import Config

# TensorFlow, and what imports it, is imported in the functions that need it, so that `--help` answers at once.

MATCHED, FORCED, UNMATCHED, DIFFICULT = STATES = ("matched", "forced", "unmatched", "difficult")
UPWARDS = (DIFFICULT, MATCHED, FORCED, UNMATCHED)  # the order of drawing: what needs attention comes uppermost
STATE_COLOURS = dict(zip(STATES, ((255, 255, 255), (255, 140, 0), (255, 30, 30), (150, 150, 150))))
POOR_SHARE = 0.8  # of a class's boxes matched: below it the summary says what to do
GROUND, TEXT = (24, 24, 24), (225, 225, 225)

TILE_SIDE = 560  # px that a picture's longer side is enlarged to, in whole steps
SHEET_SIZE = (1600, 2000)  # px (height, width) of a sheet without its legend, at most, unless one picture is larger
FONT_SIZE, LINE_HEIGHT, GAP = 14, 20, 8  # px
CAPTION_HEIGHT = 3 * LINE_HEIGHT + GAP


class Picture(NamedTuple):
    """One image as the network receives it, with n boxes and the p positive anchors."""

    record_index: int
    pixels: np.ndarray  # u8 [h, w, 3], augmented
    boxes: np.ndarray  # f32 [n, 4] px
    classes: np.ndarray  # i32 [n]
    states: np.ndarray  # str [n], of STATES
    anchors: np.ndarray  # f32 [p, 4] px
    levels: np.ndarray  # i32 [p], of the pyramid
    owners: np.ndarray  # i32 [p], index of the box that each anchor answers for
    ious: np.ndarray  # f32 [p], with that box


def anchor_levels(config: AnchorConfig, image_size) -> np.ndarray:
    """The level of every anchor, i32 [a], in the order of `make_anchors`."""
    counts = [rows * columns * config.anchors_per_location for rows, columns in grid_sizes(config, image_size)]
    return np.repeat(np.array(config.levels, np.int32), counts)


def anchor_sizes(config: AnchorConfig) -> list[str]:
    """The sizes, square roots of areas, of each level's anchors in px, such as "32-51"."""
    spans = [sorted({round(size * scale(config.scales)) for scale in (min, max)}) for size in config.sizes]
    return ["-".join(map(str, span)) for span in spans]


def find_owners(class_targets, matched_boxes, boxes, classes, difficult) -> np.ndarray:
    """Which box each positive anchor answers for: targets say it only by what they ask the anchor to become.

    Args:
      class_targets: i32 [p].
      matched_boxes: f32 [p, 4] px, the anchors moved by their box targets.
      boxes: f32 [n, 4] px.
      classes: i32 [n].
      difficult: bool [n]; such a box owns no anchor.

    Returns:
      i32 [p]: of the boxes of the anchor's class the nearest, which is equal but for rounding; of twins the first.
    """
    if not len(matched_boxes):
        return np.zeros([0], np.int32)
    distances = np.abs(matched_boxes[:, np.newaxis] - boxes).max(axis=-1)
    candidates = (class_targets[:, np.newaxis] == classes) & ~difficult
    return np.where(candidates, distances, np.inf).argmin(axis=1).astype(np.int32)


def receive(paths: Sequence[str], config: InputConfig, num_images: int) -> Iterator[Picture]:
    """The first images of a training run on one replica, as they enter the network.

    Args:
      paths: shards, in order.
      config: all of it counts, `batch_size` too: images are mixed within a batch.
      num_images: how many; beyond the records the next epoch follows.
    """
    import tensorflow as tf

    from input import batch_augment, boxes, pipeline
    from input.targets import assign

    config = dataclasses.replace(config, mixture=(), data_service="")  # how images look does not depend on these
    anchors = make_anchors(config.anchor, config.image_size)
    levels = anchor_levels(config.anchor, config.image_size)

    def prepare(batch):
        batch = batch_augment.augment(batch, config.augment)
        targets = assign(batch, config, method="sparse")
        pixels = (batch.images * batch_augment.STDDEV_RGB + batch_augment.MEAN_RGB) * 255.0
        pixels = tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.uint8)
        return batch._replace(images=pixels), targets.class_targets, boxes.decode(targets.box_targets, anchors)

    def pictures():
        dataset = pipeline.make_dataset(paths, config, training=True, batch_size=config.batch_size)
        for batch, class_targets, matched_boxes in dataset.map(prepare).as_numpy_iterator():
            for row, present in enumerate(batch.classes >= 0):
                own_boxes, classes, difficult = (
                    values[row][present] for values in (batch.boxes, batch.classes, batch.difficult)
                )
                positive = np.flatnonzero(class_targets[row] >= 0)
                owners = find_owners(
                    class_targets[row, positive], matched_boxes[row, positive], own_boxes, classes, difficult
                )
                ious = boxes.paired_iou(own_boxes[owners], anchors[positive]).numpy()
                states = np.full(len(classes), UNMATCHED, dtype="<U9")
                states[owners] = FORCED
                states[owners[ious >= config.match.positive_iou]] = MATCHED
                states[difficult] = DIFFICULT
                yield Picture(
                    record_index=int(batch.record_index[row]),
                    pixels=batch.images[row],
                    boxes=own_boxes,
                    classes=classes,
                    states=states,
                    anchors=anchors[positive],
                    levels=levels[positive],
                    owners=owners,
                    ious=ious,
                )

    return itertools.islice(pictures(), num_images)


def read_image_ids(paths: Sequence[str], record_indices: Sequence[int]) -> list[str]:
    """The image ids of records, which are counted over all shards in order; reads the shards that hold them."""
    from input import shards, tfrecord

    wanted, found, first = set(record_indices), {}, 0
    for path, count in zip(paths, shards.count_records(paths)):
        if not wanted.isdisjoint(range(first, first + count)):
            for index, record in enumerate(tfrecord.read_records(path), first):
                if index in wanted:
                    features = tfrecord.decode_example(record, frozenset(["image/source_id"]))
                    found[index] = features.get("image/source_id", [b""])[0].decode()
        first += count
    return [found[index] for index in record_indices]


def level_colours(config: AnchorConfig) -> dict[int, tuple[int, int, int]]:
    """A colour for each level, yellow to violet: none is near the red and the orange of the boxes, none dark."""
    hues = np.linspace(60, 310, len(config.levels)) / 360
    return {
        level: tuple(round(255 * value) for value in colorsys.hls_to_rgb(hue, 0.7, 1.0))
        for level, hue in zip(config.levels, hues)
    }


@functools.lru_cache
def _font(size=FONT_SIZE):
    return ImageFont.load_default(size)


def _write(draw, position, words):
    """Writes (text, colour) after (text, colour) from `position` (x, y) on."""
    x, y = position
    for text, colour in words:
        draw.text((x, y), text, fill=colour, font=_font())
        x += draw.textlength(text, font=_font())


def _rectangle(draw, box, zoom, colour, line):
    """A box in px of the image, drawn on its edges, or as a point where it is smaller than that."""
    ymin, xmin, ymax, xmax = (round(float(side) * zoom) for side in box)
    draw.rectangle((xmin, ymin, max(xmin, xmax - 1), max(ymin, ymax - 1)), outline=colour, width=line)


def _dot(draw, x, y, radius, colour):
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=GROUND)


def _label(image, box, zoom, text, colour):
    """Text in the box's upper left corner, or on top of it where it would hide too much; inside the picture."""
    draw, font = ImageDraw.Draw(image), _font(FONT_SIZE - 2)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = math.ceil(right - left) + 4, math.ceil(bottom - top) + 4
    ymin, xmin, ymax, xmax = (float(side) * zoom for side in box)
    hides = (xmax - xmin) * (ymax - ymin) < 4 * width * height
    x = max(0, min(round(xmin) + 2, image.width - width))
    y = max(0, round(ymin) - height) if hides else round(ymin) + 2
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=GROUND)
    draw.text((x + 2 - left, y + 2 - top), text, fill=colour, font=font)


def zoom_of(image_size) -> int:
    """By how much pictures of (height, width) are enlarged: in whole steps, so that each pixel is seen as it is."""
    return max(1, round(TILE_SIDE / max(image_size)))


def draw_picture(picture: Picture, labels: Sequence[str], colours: dict) -> Image.Image:
    """The image enlarged, with boxes by state, each box's best anchor, and dots at the centres of all that answer."""
    zoom = zoom_of(picture.pixels.shape[:2])
    image = Image.fromarray(picture.pixels).resize([side * zoom for side in picture.pixels.shape[1::-1]], Image.NEAREST)
    draw = ImageDraw.Draw(image)
    for box in range(len(picture.boxes)):
        own = np.flatnonzero(picture.owners == box)
        if len(own):
            best = own[picture.ious[own].argmax()]
            _rectangle(draw, picture.anchors[best], zoom, colours[picture.levels[best]], line=1)
    order = np.argsort([UPWARDS.index(state) for state in picture.states], kind="stable")
    for box in order:
        _rectangle(draw, picture.boxes[box], zoom, GROUND, line=3)  # so that it shows on light grounds too
        _rectangle(draw, picture.boxes[box], zoom, STATE_COLOURS[picture.states[box]], line=2)
    centers = np.round((picture.anchors[:, :2] + picture.anchors[:, 2:]) / 2)  # whole, but for rounding errors
    places, counts = np.unique(np.column_stack([picture.levels, centers]), axis=0, return_counts=True)
    for (level, y, x), count in zip(places, counts):
        _dot(draw, x * zoom, y * zoom, 1 + math.sqrt(count), colours[level])
    num_anchors = np.bincount(picture.owners, minlength=len(picture.boxes))
    for box in order:
        text = f"{labels[picture.classes[box]]} {num_anchors[box]}"
        _label(image, picture.boxes[box], zoom, text, STATE_COLOURS[picture.states[box]])
    return image


def _count_words(states):
    words = [(f"boxes: {len(states)}", TEXT)]
    for state in STATES:
        number = int((states == state).sum())
        if number:
            words.append((f"   {state} {number}", STATE_COLOURS[state]))
    return words


def draw_tile(picture: Picture, image_id: str, labels: Sequence[str], colours: dict) -> Image.Image:
    """The picture over its name and its counts."""
    drawn = draw_picture(picture, labels, colours)
    tile = Image.new("RGB", (drawn.width, drawn.height + CAPTION_HEIGHT), GROUND)
    tile.paste(drawn)
    draw = ImageDraw.Draw(tile)
    levels = [(f"   P{level} {int((picture.levels == level).sum())}", colour) for level, colour in colours.items()]
    lines = (
        [(image_id, TEXT)],
        _count_words(picture.states),
        [(f"positive anchors: {len(picture.levels)}", TEXT), *levels],
    )
    for number, words in enumerate(lines):
        _write(draw, (0, drawn.height + number * LINE_HEIGHT + 2), words)
    return tile


def draw_legend(config: InputConfig, colours: dict, width: int) -> Image.Image:
    """What the signs and colours mean, `width` px wide and as high as it needs."""
    boxes = {
        MATCHED: f"matched: an anchor's IoU reaches {config.match.positive_iou:g}",
        FORCED: "forced: its best anchor alone, below that",
        UNMATCHED: "unmatched: no anchor answers for it",
        DIFFICULT: "difficult: left out",
    }
    levels = zip(colours.items(), anchor_sizes(config.anchor))
    of_boxes = [
        *(("box", STATE_COLOURS[state], meaning) for state, meaning in boxes.items()),
        ("", TEXT, "number: anchors that answer for the box"),
    ]
    of_anchors = [
        *(("dot", colour, f"P{level}: {sizes} px") for (level, colour), sizes in levels),
        ("", TEXT, "dot: their centre, larger where there are several"),
        ("", TEXT, "thin outline: the best of them"),
    ]
    legend = Image.new("RGB", (width, 2 * GAP + len(of_boxes + of_anchors) * LINE_HEIGHT), GROUND)
    draw = ImageDraw.Draw(legend)
    y = GAP
    for entries in (of_boxes, of_anchors):
        x = GAP
        for sign, colour, meaning in entries:
            indent = 26 if sign else 0
            length = indent + draw.textlength(meaning, font=_font())
            if x > GAP and x + length > width:
                x, y = GAP, y + LINE_HEIGHT
            if sign == "box":
                draw.rectangle((x, y + 2, x + 18, y + 15), outline=colour, width=2)
            elif sign == "dot":
                _dot(draw, x + 10, y + 9, 4, colour)
            _write(draw, (x + indent, y), [(meaning, colour)])
            x += length + 3 * GAP
        y += LINE_HEIGHT
    return legend.crop((0, 0, width, y + GAP))


def draw_sheet(tiles: Sequence[Image.Image], max_columns: int, config: InputConfig, colours: dict) -> Image.Image:
    """The tiles under the legend, in rows of equal length as far as may be."""
    tile_width, tile_height = tiles[0].size
    rows = -(-len(tiles) // max_columns)
    columns = -(-len(tiles) // rows)
    width = columns * (tile_width + GAP) + GAP
    legend = draw_legend(config, colours, width)
    sheet = Image.new("RGB", (width, legend.height + rows * tile_height), GROUND)
    sheet.paste(legend)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (GAP + column * (tile_width + GAP), legend.height + row * tile_height))
    return sheet


def summarize(pictures: Sequence[Picture], config: Config) -> dict:
    """The counts over all pictures, as `preview.json` holds them.

    `matched_share` and `median_size` (square root of the area, px of the network's input) are of the boxes that are not
    difficult, None where a class has none.
    """
    classes, states, boxes = (
        np.concatenate([values, *(getattr(picture, name) for picture in pictures)])
        for name, values in (
            ("classes", np.zeros([0], np.int32)),
            ("states", np.zeros([0], "<U9")),
            ("boxes", np.zeros([0, 4], np.float32)),
        )
    )
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))

    def counts(chosen):
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
        "positive_anchors": {
            f"P{level}": sum(int((picture.levels == level).sum()) for picture in pictures)
            for level in config.input.anchor.levels
        },
        "per_class": {label: counts(classes == index) for index, label in enumerate(config.labels)},
    }


def format_summary(summary: dict, config: InputConfig) -> str:
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


def write_preview(paths: Sequence[str], config: Config, output_dir: str, num_images: int) -> dict:
    """Writes contact sheets of what training on these shards feeds the network, and `preview.json`.

    Args:
      paths: shards.
      config: `labels` and `input` count.
      output_dir: DIR; made if need be. Sheets of an earlier call are removed.
      num_images: how many images to show.

    Returns:
      The content of `preview.json`: `summarize`'s counts, `sheets` (files in DIR), `records` and `input` (settings).

    Raises:
      ValueError: there are no records.
    """
    from trainer import checkpoints

    os.makedirs(output_dir, exist_ok=True)
    for old in glob.glob(os.path.join(glob.escape(output_dir), "sheet-[0-9][0-9][0-9].jpg")):
        os.remove(old)
    colours = level_colours(config.input.anchor)
    height, width = (side * zoom_of(config.input.image_size) for side in config.input.image_size)
    rows, columns = max(1, SHEET_SIZE[0] // (height + CAPTION_HEIGHT)), max(1, SHEET_SIZE[1] // (width + GAP))
    arriving = receive(paths, config.input, num_images)
    sheets, seen = [], []
    while group := list(itertools.islice(arriving, rows * columns)):
        image_ids = read_image_ids(paths, [picture.record_index for picture in group])
        tiles = [draw_tile(picture, name, config.labels, colours) for picture, name in zip(group, image_ids)]
        sheets.append(f"sheet-{len(sheets):03d}.jpg")
        sheet = draw_sheet(tiles, columns, config.input, colours)
        sheet.save(os.path.join(output_dir, sheets[-1]), quality=90, subsampling=0)  # lines of one pixel keep colour
        seen += [picture._replace(pixels=None) for picture in group]
    summary = {
        **summarize(seen, config),
        "sheets": sheets,
        "records": list(paths),
        "input": dataclasses.asdict(config.input),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    checkpoints.write_file(os.path.join(output_dir, "preview.json"), text)
    return summary


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; flags are written --name=value.")
    import flags

    FLAGS = absl_flags.FLAGS
    try:
        flags.config_from_flags()  # a wrong flag shows before the seconds that TensorFlow takes to start
        import tensorflow as tf

        from input import shards

        tf.config.set_visible_devices([], "GPU")  # a few images need none, and a training may be using them all
        paths = shards.expand_glob(FLAGS.records)
        config = flags.config_from_flags(shards.read_labels(paths))
        summary = write_preview(paths, config, FLAGS.output_dir, FLAGS.num_images)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"images: {summary['num_images']}, contact sheets: {len(summary['sheets'])}, in {FLAGS.output_dir}\n")
    print(format_summary(summary, config.input))


if __name__ == "__main__":
    import flags

    absl_flags.adopt_module_key_flags(flags)
    absl_flags.DEFINE_list(
        "records", None, "Shards to look at: patterns such as 'OUT/train-*.tfrecord'.", required=True
    )
    absl_flags.DEFINE_string("output_dir", None, "Where the sheets and preview.json go.", required=True)
    absl_flags.DEFINE_integer("num_images", 24, "Images to show.", lower_bound=1)
    app.run(main)
