"""Weights of torchvision and Keras in our networks: outputs against theirs, names, files and refusals."""

import dataclasses
import sys

import numpy as np
import published
import pytest
import tensorflow as tf

from input.config import AnchorConfig
from model import pretrained, resnet, retinanet, weight_files
from model.config import ModelConfig
from trainer import import_weights, initial_weights

# What torchvision 0.28 makes of `published.IMAGES`: each 166th anchor, in its own order (python tests/published.py).
CLASS_LOGITS = [[-0.31697, 0.20877, 0.23786], [-0.46931, 0.02822, -0.27372], [-0.20984, -0.28947, -1.23542],
                [-0.45628, -0.65216, 0.32341], [-0.03974, -0.21738, -0.17718], [-0.17238, -0.00569, -0.0163],
                [-0.42205, 0.01098, 0.28873]]  # fmt: skip
BOX_DELTAS = [[-0.18962, -0.01372, -0.113, 0.35116], [0.43709, 0.69202, 0.35466, 0.5692],
              [0.22728, 0.19755, 0.40566, -0.22425], [-0.58492, 0.23306, -0.29707, -0.08956],
              [-0.90077, 0.15851, -0.25087, -0.26385], [0.27151, -0.0533, 0.79029, 0.05056],
              [0.18884, 0.06759, -0.30956, 0.43845]]  # fmt: skip
RESNET18 = published.random_tensors(published.resnet_shapes((1, 1, 1, 1), bottleneck=False))
LABELS = ("", "cat", "dog")


@pytest.fixture(scope="module")
def detector():
    """torchvision's, with a small body."""
    return published.random_tensors(published.detector_shapes((1, 1, 1, 1), bottleneck=False))


@pytest.fixture(autouse=True)
def smallest_resnet18(monkeypatch):
    """One block a stage instead of two."""
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", (False, (1, 1, 1, 1)))


def in_torchvisions_order(values):
    """[anchors, ...] with ratios, height / width, outside scales in each location."""
    locations = values.reshape(-1, 3, 3, values.shape[-1])  # scales, ratios
    return locations.swapaxes(1, 2)[:, ::-1].reshape(values.shape)


def test_a_whole_detector_equals_torchvision():
    detector = published.random_tensors(published.detector_shapes((3, 4, 6, 3), bottleneck=True))
    weights, skipped, _ = pretrained.translate(detector, "detector", labels=["cat", "dog"])
    assert not skipped
    origin = weights.origin
    assert (origin.backbone, origin.resnet_stride, origin.p6_from) == ("resnet50", "3x3", "p5")
    assert (origin.preprocessing, origin.batch_norm_epsilon, origin.labels) == ("imagenet", 1e-5, LABELS)
    assert origin.anchor == AnchorConfig(anchor_convention="torchvision")
    model = retinanet.make_model(
        ModelConfig(resnet_stride="3x3", p6_from="p5"),
        num_classes=3,
        anchors_per_location=9,
        image_size=published.IMAGES.shape[1:3],
    )
    assert initial_weights.load(model, weights, LABELS) == (len(model.variables), [])
    logits, deltas = (in_torchvisions_order(values[0].numpy()) for values in model(published.IMAGES))
    np.testing.assert_allclose(logits[::166], CLASS_LOGITS, atol=1e-4)
    np.testing.assert_allclose(deltas[::166][:, [1, 0, 3, 2]], BOX_DELTAS, atol=1e-4)


def test_files_from_before_torchvision_0_13_give_the_same(detector):
    older = {}
    for name, value in detector.items():
        name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if "blocks" in name else name
        if "_head.conv." in name:
            head, index, _, kind = name.rsplit(".", 3)
            name = f"{head}.{2 * int(index)}.{kind}"
        older[name] = value
    assert older.keys() != detector.keys()
    expected, found = (pretrained.translate(tensors, "").weights.arrays for tensors in (detector, older))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_frozen_batch_norm_has_no_epsilon_unless_it_is_told(detector):
    frozen = {name: value for name, value in detector.items() if "num_batches_tracked" not in name}
    assert pretrained.translate(frozen, "").weights.origin.batch_norm_epsilon == 0.0
    assert pretrained.translate(frozen, "", epsilon=1e-5).weights.origin.batch_norm_epsilon == 1e-5


def test_the_backbone_of_a_detector_alone(detector):
    with_norm = {**detector, "head.classification_head.conv.0.1.weight": np.ones(256)}
    with pytest.raises(ValueError, match=r"conv\.0\.1\.weight belongs to a detector that we do not have"):
        pretrained.translate(with_norm, "file")
    weights, skipped, _ = pretrained.translate(with_norm, "file", backbone_only=True)
    assert weights.origin.neck == ""
    assert all(name.startswith("backbone/") for name in weights.arrays)
    assert "head.classification_head.conv.0.1.weight" in skipped


@pytest.fixture(scope="module")
def keras_resnet50():
    """Keras's network with random weights, and its features."""
    network = tf.keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 96, 3))
    rng = np.random.default_rng(0)
    for layer in network.layers:  # no value may be one that hides a mistake
        if layer.name.endswith("_conv"):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, rng.normal(0, 0.3, bias.shape)])
        if layer.name.endswith("_bn"):
            gain = 0.3 if layer.name.endswith("_3_bn") else 1.0
            gamma, variance = rng.uniform(0.5, 1.5, [2, *layer.gamma.shape])
            beta, mean = rng.normal(0, 0.3, [2, *layer.gamma.shape])
            layer.set_weights([gain * gamma, beta, mean, variance])
    names = ("conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
    return network, tf.keras.Model(network.input, [network.get_layer(name).output for name in names])


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_keras_features_equal_keras(keras_resnet50, tmp_path):
    network, features = keras_resnet50
    network.save_weights(tmp_path / "resnet50.h5")
    lines = import_weights.import_weights(str(tmp_path / "resnet50.h5"), str(tmp_path / "ours.safetensors"))
    assert lines[0] == "recognised: resnet50"
    assert lines[2] == "changed: the biases of 53 convolutions became part of the moving means"
    weights = pretrained.load(str(tmp_path / "ours.safetensors"))
    assert weights.origin.preprocessing == "caffe"
    assert weights.origin.resnet_stride == "1x1"
    assert weights.origin.batch_norm_epsilon == 1.001e-5
    with pytest.raises(ValueError, match=r"ours\.safetensors: this command wrote it already"):
        import_weights.import_weights(str(tmp_path / "ours.safetensors"), str(tmp_path / "again.safetensors"))

    backbone = retinanet.make_backbone(ModelConfig(resnet_stride="1x1"))
    images = tf.random.stateless_normal([2, 64, 96, 3], seed=[0, 0])
    backbone(images)
    for variable in backbone.variables:
        name = variable.name.removesuffix(":0").split("/", 1)[1]
        variable.assign(weights.arrays[f"backbone/{name}"])
    for training, tolerance in ((False, 1e-4), (True, 1e-3)):
        for found, expected in zip(backbone(images, training=training), features(images, training=training)):
            assert np.std(expected) > 0.1
            np.testing.assert_allclose(found, expected, atol=tolerance, rtol=1e-5)


def small_keras_network():
    inputs = tf.keras.Input((8, 8, 3))
    outputs = tf.keras.layers.Conv2D(2, 3, name="conv1_conv")(inputs)
    outputs = tf.keras.layers.BatchNormalization(name="conv1_bn")(outputs)
    inner = tf.keras.Sequential([tf.keras.layers.Conv2D(4, 1, use_bias=False, name="inner_conv")], name="inner")
    network = tf.keras.Model(inputs, tf.keras.layers.DepthwiseConv2D(3, name="last_conv")(inner(outputs)))
    network.set_weights([np.random.default_rng(0).random(value.shape) for value in network.get_weights()])
    return network


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_each_format_of_keras_gives_the_same_names_and_arrays(tmp_path):
    network = small_keras_network()
    network.save_weights(tmp_path / "weights.h5")
    network.save(tmp_path / "model.h5")
    network.save(tmp_path / "model.keras")
    expected = {
        f"{layer.name}/{variable.name.split('/')[-1].removesuffix(':0')}": variable.numpy()
        for layer in [*network.layers, *network.get_layer("inner").layers]
        if not hasattr(layer, "layers")
        for variable in layer.variables
    }
    assert len(expected) == 2 + 4 + 1 + 2
    for name in ("weights.h5", "model.h5", "model.keras"):
        found = weight_files.read_tensors(str(tmp_path / name))
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)


def test_arrays_of_numpy_and_safetensors(tmp_path):
    from safetensors import numpy as safetensors

    tensors = {"a.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    np.savez(tmp_path / "file.npz", **tensors)
    safetensors.save_file(tensors, tmp_path / "file.safetensors")
    for name in ("file.npz", "file.safetensors"):
        found = weight_files.read_tensors(str(tmp_path / name))
        assert found.keys() == tensors.keys()
        assert all(np.array_equal(found[key], tensors[key]) for key in tensors)
    assert pretrained.load(str(tmp_path / "file.safetensors")) is None  # not one of ours


def test_no_pickle_is_run(tmp_path, monkeypatch):
    np.savez(tmp_path / "file.npz", evil=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"file\.npz cannot be read as a \.npz file of weights"):
        weight_files.read_tensors(str(tmp_path / "file.npz"))
    (tmp_path / "file.pth").write_bytes(b"no matter what")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"file\.pth: to read it, install PyTorch"):
        weight_files.read_tensors(str(tmp_path / "file.pth"))


@pytest.mark.parametrize("name", ["file.safetensors", "file.h5", "file.keras", "file.npz"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        weight_files.read_tensors(str(tmp_path / name))


def test_an_unknown_kind_of_file_and_a_missing_one(tmp_path):
    with pytest.raises(ValueError, match=r"weights\.ckpt: the file's name must end in one of \.safetensors"):
        weight_files.read_tensors("weights.ckpt")
    with pytest.raises(FileNotFoundError, match=r"--source=.*gone\.npz"):
        import_weights.import_weights(str(tmp_path / "gone.npz"), "out.safetensors")
    with pytest.raises(ValueError, match="--output=out: its name must end in"):
        import_weights.import_weights(str(tmp_path / "gone.npz"), "out")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xd8")
    with pytest.raises(ValueError, match=r"--labels=.*/labels\.txt is not UTF-8"):
        import_weights.import_weights(__file__, "out.safetensors", labels_path=str(tmp_path / "labels.txt"))


def test_our_file_holds_what_was_saved(tmp_path):
    weights, skipped, changed = pretrained.translate(
        {**RESNET18, "fc.weight": np.ones([1000, 512]), "fc.bias": np.ones(1000)}, "timm", preprocessing="tf_lite"
    )
    assert skipped == ["fc.bias", "fc.weight"]
    assert not changed
    origin = dataclasses.replace(weights.origin, labels=("è", "dog"), anchor=AnchorConfig(scales=(1.0, 1.5)))
    assert (origin.backbone, origin.resnet_stride, origin.preprocessing) == ("resnet18", "auto", "tf_lite")
    path = str(tmp_path / "new" / "own.safetensors")
    pretrained.save(path, weights._replace(origin=origin))
    found = pretrained.load(path)
    assert found.origin == origin
    assert found.arrays.keys() == weights.arrays.keys()
    assert all(np.array_equal(found.arrays[name], weights.arrays[name]) for name in found.arrays)


def test_what_is_not_a_whole_backbone_is_refused():
    with pytest.raises(ValueError, match="no backbone that we have is in it; its tensors are dense"):
        pretrained.translate({"dense/kernel": np.ones([2, 2])}, "file")
    for changed in (
        {name: value for name, value in RESNET18.items() if name != "layer4.0.bn2.bias"},
        {**RESNET18, "conv1.weight": np.ones([64, 1, 7, 7])},
    ):
        with pytest.raises(ValueError, match=r"the 12 convolutions in it, .* are not those of any backbone"):
            pretrained.translate(changed, "file")


# In timm's names: SE-ResNet has a part of its own; ResNet-D pools before it projects.
@pytest.mark.parametrize("name", ["layer1.0.se.fc1.weight", "layer2.0.downsample.2.weight"])
def test_a_block_with_other_parts_is_refused(name):
    with pytest.raises(ValueError, match=f"file: {name} is inside a block of the backbone"):
        pretrained.translate({**RESNET18, name: np.ones([64, 16, 1, 1])}, "file")


def test_a_stem_alone_is_no_backbone():
    with pytest.raises(ValueError, match="no backbone that we have is in it"):
        pretrained.translate({"bn1.weight": np.ones(32), "bn1.running_mean": np.ones(32)}, "file")


def test_a_prefix_of_parallel_training_does_not_matter():
    plain, prefixed = (
        pretrained.translate({f"{prefix}{name}": value for name, value in RESNET18.items()}, "").weights.arrays
        for prefix in ("", "module.")
    )
    assert plain.keys() == prefixed.keys()


def test_labels_of_a_detector(detector):
    assert pretrained.translate(detector, "").weights.origin.labels == ()
    assert pretrained.translate(detector, "", labels=["a", "b", "c"]).weights.origin.labels == ("a", "b", "c")
    with pytest.raises(ValueError, match="predicts 3 classes with the background, but --labels has 1"):
        pretrained.translate(detector, "file", labels=["a"])


def test_the_names_of_voc_and_coco_agree():
    from model.coco_classes import CATEGORIES

    voc = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
           "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]  # fmt: skip
    coco = {pretrained.same_class(label) for label in CATEGORIES if label}
    assert len(coco) == 80
    assert len({pretrained.same_class(label) for label in voc} & coco) == 20
