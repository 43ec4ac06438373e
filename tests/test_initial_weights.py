"""What a run starts from: settings that follow from weights, refusals, classes mapped by name, and whole runs."""

import dataclasses
import logging
import os
import re
import shutil

import numpy as np
import published
import pytest
import tensorflow as tf
import tiny
import toy_shards

from input import batch_augment, files
from input.config import AnchorConfig
from model import pretrained, resnet
from trainer import checkpoints, import_weights, inference, initial_weights, train
from trainer.config import Config

pytestmark = pytest.mark.usefixtures("smallest_resnet18")

SHAPES = list(published.resnet_shapes((1, 1, 1, 1), bottleneck=False))


def imported(path, shapes, **settings):
    weights = pretrained.translate(published.random_tensors(shapes), "published", **settings).weights
    pretrained.save(str(path), weights)
    return str(path), weights


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory):
    return imported(tmp_path_factory.mktemp("backbone") / "backbone.safetensors", SHAPES, preprocessing="caffe")


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    shapes = published.detector_shapes((1, 1, 1, 1), bottleneck=False, num_classes=4)
    return imported(path, shapes, labels=["airplane", "dog", "tv"])


def with_weights(config=tiny.CONFIG, **weights):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **weights))


def test_without_weights_nothing_changes(tmp_path):
    assert initial_weights.prepare(tiny.CONFIG, str(tmp_path)) == (tiny.CONFIG, None)


def test_a_backbone_decides_the_preprocessing_and_is_loaded(tmp_path, backbone_file, caplog):
    path, weights = backbone_file
    config, found = initial_weights.prepare(with_weights(backbone_weights=path), str(tmp_path))
    assert config.input.preprocessing == "caffe"
    assert (config.model.p6_from, config.input.anchor) == ("auto", tiny.CONFIG.input.anchor)
    model = checkpoints.make_model(config)
    head = model.class_head.output_conv.kernel.numpy()
    with caplog.at_level(logging.INFO):
        initial_weights.start(model, found, config, num_images=3)
    assert "60 tensors of the weights start from published" in caplog.text
    assert "anew" not in caplog.text
    variables = pretrained.variables_by_name(model)
    for name, array in weights.arrays.items():  # TensorFlow's epsilon is 1e-8 larger than PyTorch's
        np.testing.assert_allclose(variables[name], array, atol=2e-8)
    np.testing.assert_array_equal(model.class_head.output_conv.kernel, head)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"neck": "panet", "head_norm": "group"}, marks=pytest.mark.slow),
        pytest.param({"neck": "bifpn", "neck_repeats": 2}, marks=pytest.mark.slow),
        {"neck": "bifpn", "separable_convs": True, "head_norm": "batch"},
    ],
    ids=str,
)
def test_every_network_has_a_name_for_each_variable_and_is_read_back_whole(tmp_path, backbone_file, settings):
    model_config = dataclasses.replace(tiny.CONFIG.model, **settings)
    base = dataclasses.replace(tiny.CONFIG, model=model_config)
    config, found = initial_weights.prepare(with_weights(base, backbone_weights=backbone_file[0]), str(tmp_path))
    model = checkpoints.make_model(config)
    taken, anew = initial_weights.load(model, found, config.labels, within="backbone")
    assert (taken, anew) == (len(found.arrays), [])

    variables = pretrained.variables_by_name(model)
    assert len(variables) == len(model.variables)
    assert {name.split("/")[0] for name in variables} == {"backbone", "neck", "class_head", "box_head"}
    path = str(tmp_path / "whole.safetensors")
    origin = dataclasses.replace(found.origin, labels=config.labels)
    pretrained.save(path, pretrained.Weights(origin, {name: v.numpy() for name, v in variables.items()}))
    other = checkpoints.make_model(config)
    assert initial_weights.load(other, pretrained.load(path), config.labels) == (len(variables), [])
    for name, variable in pretrained.variables_by_name(other).items():
        np.testing.assert_allclose(variable, variables[name], atol=2e-8)


def test_a_detector_decides_p6_and_anchors_and_its_common_classes_are_kept(tmp_path, detector_file):
    path, weights = detector_file
    base = dataclasses.replace(
        tiny.CONFIG,
        labels=("cat", "dog", "tvmonitor"),
        input=dataclasses.replace(tiny.CONFIG.input, anchor=AnchorConfig()),
        model=dataclasses.replace(tiny.CONFIG.model, neck_filters=256, head_convs=4),
    )
    config, found = initial_weights.prepare(with_weights(base, init_checkpoint=path), str(tmp_path))
    assert (config.model.p6_from, config.input.preprocessing) == ("p5", "imagenet")
    assert config.input.anchor == AnchorConfig(anchor_convention="torchvision")
    model = checkpoints.make_model(config)
    fresh = {name: variable.numpy() for name, variable in pretrained.variables_by_name(model).items()}
    taken, anew = initial_weights.load(model, found, config.labels)
    assert taken == len(model.variables)
    assert anew == [f"class_head/output/{name}, for the classes cat" for name in ("kernel", "bias")]
    for name in ("kernel", "bias"):
        key = f"class_head/output/{name}"
        ours, theirs = pretrained.variables_by_name(model)[key].numpy(), weights.arrays[key]
        for anchor in range(9):
            np.testing.assert_array_equal(ours[..., anchor * 3 + 0], fresh[key][..., anchor * 3 + 0])
            np.testing.assert_array_equal(ours[..., anchor * 3 + 1], theirs[..., anchor * 4 + 2])
            np.testing.assert_array_equal(ours[..., anchor * 3 + 2], theirs[..., anchor * 4 + 3])


def test_common_classes_of_a_separable_head_are_kept(tmp_path):
    model_config = dataclasses.replace(tiny.CONFIG.model, separable_convs=True)
    base = dataclasses.replace(tiny.CONFIG, model=model_config, labels=("dog", "bird", "cat"))
    model = checkpoints.make_model(base)
    variables = pretrained.variables_by_name(model)
    fresh = {name: variable.numpy() for name, variable in variables.items()}
    shapes = {name: variable.shape for name, variable in variables.items() if name.startswith("class_head/output/")}
    origin = pretrained.Origin("file", "resnet18", "imagenet", base.model.batch_norm_epsilon, labels=("cat", "dog"))
    for common in (True, False):
        labels = base.labels if common else ("car", "bus", "van")
        arrays = {
            name: np.full([*shape[:-1], shape[-1] if name.endswith("/depthwise_kernel") else shape[-1] // 3 * 2], 7.0)
            for name, shape in shapes.items()
        }
        taken, anew = initial_weights.load(
            model, pretrained.Weights(origin, arrays), labels, within="class_head/output"
        )
        depthwise, pointwise = (variables[f"class_head/output/{name}_kernel"] for name in ("depthwise", "pointwise"))
        np.testing.assert_array_equal(depthwise, np.full(depthwise.shape, 7.0))
        assert taken == (3 if common else 1)
        assert all("depthwise" not in line for line in anew)
        if common:
            classes = pointwise.numpy().reshape(-1, 3)
            np.testing.assert_array_equal(classes[:, [0, 2]], np.full([len(classes), 2], 7.0))
            name = "class_head/output/pointwise_kernel"
            np.testing.assert_array_equal(classes[:, 1], fresh[name].reshape(-1, 3)[:, 1])


def test_what_does_not_fit_is_named(tmp_path, detector_file):
    config, found = initial_weights.prepare(with_weights(init_checkpoint=detector_file[0]), str(tmp_path))
    model = checkpoints.make_model(config)
    _, anew = initial_weights.load(model, found, config.labels)
    assert "neck/lateral3/kernel, (1, 1, 128, 256) there, (1, 1, 128, 8) here" in anew
    assert "class_head/output/kernel, since it is of other classes" in anew
    assert not any("backbone" in line for line in anew)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"backbone": "resnet34"}}, r"holds a resnet18, not the --backbone=resnet34"),
        ({"model": {"norm": "group"}}, r"trained with another normalisation than --norm=group"),
        ({"model": {"p6_from": "c5"}}, r"needs --p6_from=p5; got c5"),
        ({"input": {"preprocessing": "tf_lite"}}, r"needs --preprocessing=imagenet; got tf_lite"),
        ({"input": {"anchor": AnchorConfig(anchor_convention="paper")}}, r"needs --anchor_convention=torchvision"),
    ],
)
def test_weights_that_need_other_settings_are_refused(tmp_path, detector_file, change, message):
    config = with_weights(init_checkpoint=detector_file[0])
    for part, settings in change.items():
        config = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **settings)})
    with pytest.raises(ValueError, match=message):
        initial_weights.prepare(config, str(tmp_path))


def test_strides_of_the_other_kind_are_refused(tmp_path):
    origin = pretrained.Origin("file", "resnet50", "caffe", 1.001e-5, resnet_stride="1x1")
    path = str(tmp_path / "v1.safetensors")
    pretrained.save(path, pretrained.Weights(origin, {"backbone/conv1/norm/moving_mean": np.zeros(64)}))
    model = dataclasses.replace(tiny.CONFIG.model, backbone="resnet50", resnet_stride="3x3")
    config = with_weights(dataclasses.replace(tiny.CONFIG, model=model), backbone_weights=path)
    with pytest.raises(ValueError, match="file needs --resnet_stride=1x1; got 3x3"):
        initial_weights.prepare(config, str(tmp_path))
    auto = dataclasses.replace(config, model=dataclasses.replace(model, resnet_stride="auto"))
    assert initial_weights.prepare(auto, str(tmp_path))[0].model.resnet_stride == "1x1"


@pytest.mark.parametrize(
    ("changes", "norm"),
    [({}, "frozen"), ({"norm": "sync"}, "sync"), ({"head_norm": "batch"}, "auto"), ({"neck": "bifpn"}, "frozen")],
)
def test_weights_keep_their_statistics_by_default(tmp_path, backbone_file, changes, norm):
    config = with_weights(backbone_weights=backbone_file[0])
    model = dataclasses.replace(config.model, **{"norm": "auto", **changes})
    assert initial_weights.prepare(dataclasses.replace(config, model=model), str(tmp_path))[0].model.norm == norm


@pytest.mark.parametrize(
    ("neck", "norm"), [("neck/lateral3_norm/gamma", "frozen"), ("neck/lateral3_norm/moving_mean", "auto")]
)
def test_a_bifpn_keeps_the_kind_of_norm_that_its_weights_have(tmp_path, neck, norm):
    """A run with --norm=frozen has group norm in its BiFPN."""
    origin = pretrained.Origin("file", "resnet18", "imagenet", 1e-5, neck="bifpn")
    arrays = {name: np.zeros(8) for name in ("backbone/conv1/norm/moving_mean", neck)}
    pretrained.save(str(tmp_path / "run.safetensors"), pretrained.Weights(origin, arrays))
    config = with_weights(init_checkpoint=str(tmp_path / "run.safetensors"))
    model = dataclasses.replace(config.model, norm="auto", neck="bifpn")
    assert initial_weights.prepare(dataclasses.replace(config, model=model), str(tmp_path))[0].model.norm == norm


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (("a", "A", "+", "-"), ("a", "A", "+", "-", "="), (0, 1, 2, 3, -1)),
        (("C++", "C"), ("D", "C", "C++"), (-1, 1, 0)),
        (("", "Dining table", "tv"), ("tvmonitor", "diningtable"), (2, 1)),
        (("cat", "CAT", "dog"), ("Cat", "dog"), (-1, 2)),  # either could be meant
        (("cat", "dog"), ("Cat", "CAT", "Dog"), (-1, -1, 1)),
        (("+",), ("-",), (-1,)),
    ],
)
def test_classes_take_the_outputs_of_their_own_names(theirs, ours, expected):
    """The bias of 9 anchors, which tells of each class where it comes from; -1: it starts anew."""
    origin = pretrained.Origin("file", "resnet18", "imagenet", 1e-5, labels=theirs)
    bias = np.tile(np.arange(len(theirs), dtype=np.float32), 9)
    mapped, left = initial_weights._map_classes(bias, np.full(9 * len(ours), -1, np.float32), origin, ours)
    if set(expected) == {-1}:
        assert (mapped, left) == (None, "since it is of other classes")
        return
    np.testing.assert_array_equal(mapped, np.tile(expected, 9))
    anew = [label for label, index in zip(ours, expected) if index < 0]
    assert left == (f"for the classes {', '.join(anew)}" if anew else "")


def test_wrong_sources_are_refused(tmp_path, backbone_file):
    with pytest.raises(ValueError, match="holds a backbone only: give it as --backbone_weights"):
        initial_weights.prepare(with_weights(init_checkpoint=backbone_file[0]), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"there is no gone\.npz"):
        initial_weights.prepare(with_weights(backbone_weights="gone.npz"), str(tmp_path))
    with pytest.raises(ValueError, match="Keras has weights for resnet50, resnet101, resnet152, not for resnet18"):
        initial_weights.prepare(with_weights(backbone_weights="imagenet"), str(tmp_path))
    with pytest.raises(ValueError, match="--backbone_weights and --init_checkpoint: give one"):
        with_weights(backbone_weights="a", init_checkpoint="b")


def test_weights_may_be_in_a_bucket(tmp_path, detector_file):
    """`ram://` stands for gs://."""
    bucket = f"ram://{tmp_path.name}"
    np.savez(tmp_path / "published.npz", **published.random_tensors(SHAPES))
    for path in (str(tmp_path / "published.npz"), detector_file[0]):
        with files.create(f"{bucket}/{os.path.basename(path)}") as file:
            file.write(files.read(path))
    import_weights.import_weights(f"{bucket}/published.npz", f"{bucket}/backbone.safetensors", preprocessing="caffe")
    for flag, preprocessing in (("backbone_weights", "caffe"), ("init_checkpoint", "imagenet")):
        path = f"{bucket}/{'backbone' if flag == 'backbone_weights' else 'detector'}.safetensors"
        config, found = initial_weights.prepare(with_weights(**{flag: path}), str(tmp_path))
        assert config.input.preprocessing == preprocessing
        assert initial_weights.load(checkpoints.make_model(config), found, config.labels)[0] >= 60
    assert sorted(files.names(bucket)) == ["backbone.safetensors", "detector.safetensors", "published.npz"]
    with pytest.raises(FileNotFoundError, match=r"there is no ram://.*/gone\.npz"):
        initial_weights.prepare(with_weights(init_checkpoint=f"{bucket}/gone.npz"), str(tmp_path))


def test_imagenet_is_kerass_file_with_its_hash(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        tf.keras.utils, "get_file", lambda name, url, **settings: asked.update(settings, url=url) or name
    )
    assert resnet.ResNet.imagenet_weights("resnet50") == "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert asked["url"].endswith("/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5")
    assert len(asked["file_hash"]) == 32


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    def fail(*arguments, **settings):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(tf.keras.utils, "get_file", fail)
    with pytest.raises(OSError, match=r"resnet101_.*\.h5 cannot be downloaded \(URL fetch failure\): download"):
        resnet.ResNet.imagenet_weights("resnet101")


def test_a_run_says_that_it_starts_from_scratch(caplog):
    with caplog.at_level(logging.INFO):
        initial_weights.start(None, None, tiny.CONFIG, num_images=5000)
    assert "start from random numbers" in caplog.text
    assert "few to learn from" not in caplog.text
    initial_weights.start(None, None, tiny.CONFIG, num_images=4999)
    assert "4999 images are few to learn from scratch" in caplog.text
    assert "never learn" not in caplog.text


@pytest.mark.parametrize(
    ("setting", "flag"), [({"norm": "frozen"}, "--norm=frozen"), ({"freeze_stages": 1}, "--freeze_st")]
)
def test_what_is_frozen_from_scratch_is_warned_of(caplog, setting, flag):
    model = dataclasses.replace(tiny.CONFIG.model, **setting)
    initial_weights.start(None, None, dataclasses.replace(tiny.CONFIG, model=model), num_images=5000)
    assert re.search(f"{flag}.* parts of the network .* never learn", caplog.text)


def test_a_run_starts_from_a_file_resumes_without_it_and_another_starts_from_the_run(tmp_path, backbone_file):
    path, weights = shutil.copy(backbone_file[0], tmp_path), backbone_file[1]
    shards = toy_shards.write_shards(tmp_path, 4, 1)
    first = tiny.config(train={"train_steps": 2, "backbone_weights": path, "ema_decay": 0.5})
    frozen = dataclasses.replace(first, model=dataclasses.replace(first.model, freeze_stages=5, norm="local"))
    run = str(tmp_path / "run")
    train.train_and_evaluate(frozen, train_paths=shards, model_dir=run)
    saved = inference.load_for_inference(run)
    assert saved.config.input.preprocessing == "caffe"
    for averaged in (True, False):
        model = inference.load_for_inference(run, averaged=averaged).model
        variables = pretrained.variables_by_name(model)
        for name, array in weights.arrays.items():
            np.testing.assert_allclose(variables[name], array, atol=2e-8)

    images = tf.random.stateless_uniform([1, *tiny.CONFIG.input.image_size, 3], [0, 0], 0, 255)
    transforms, sizes = tf.constant([[1.0, 1.0, 0.0, 0.0]]), tf.constant([tiny.CONFIG.input.image_size])
    seen = []
    detect = inference.make_detector(lambda inputs, training: seen.append(inputs) or saved.model(inputs), saved.config)
    detect(images, transforms, sizes)
    np.testing.assert_array_equal(seen[0], batch_augment.normalize(images, "caffe"))

    os.unlink(path)
    longer = dataclasses.replace(frozen, train=dataclasses.replace(frozen.train, train_steps=3))
    assert train.train_and_evaluate(longer, train_paths=shards, model_dir=run).step == 3

    config, found = initial_weights.prepare(with_weights(init_checkpoint=run), str(tmp_path / "second"))
    assert (config.input.preprocessing, config.model.p6_from) == ("caffe", "c5")
    assert config.input.anchor == dataclasses.replace(tiny.CONFIG.input.anchor, anchor_convention="paper")
    model = checkpoints.make_model(config)
    assert initial_weights.load(model, found, config.labels) == (len(model.variables), [])
    by_checkpoint = initial_weights.prepare(with_weights(init_checkpoint=f"{run}/checkpoints/ckpt-2"), str(tmp_path))[1]
    assert by_checkpoint.origin.source.endswith("ckpt-2")
    assert isinstance(config, Config)
