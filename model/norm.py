"""Normalisation after a convolution: batch norm of one replica or of all, frozen batch norm, or group norm."""

from __future__ import annotations

import math

import tensorflow as tf

from model.config import ModelConfig

_GROUPS = 32  # of channels (Wu & He 2018, section 3.1)


class SyncBatchNormalization(tf.keras.layers.BatchNormalization):
    """Batch norm of [b, h, w, c] with statistics over all replicas; the shape must be static.

    It computes what Keras's `synchronized=True` does, with one all-reduce forward and one backward instead of five, and
    with the fused kernels.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return super().call(inputs, training=False)
        replicas = tf.distribute.get_replica_context()
        inputs = tf.cast(inputs, self.compute_dtype)
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        count = inputs.shape[:3].num_elements()

        # The output of this call is not used, only the statistics. TensorFlow gives the unbiased variance.
        _, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.stop_gradient(inputs), scale=gamma, offset=beta, mean=[], variance=[], epsilon=self.epsilon
        )
        mean_square = tf.square(mean) + variance * (max(count - 1, 1) / count)
        mean, mean_square = tf.unstack(replicas.all_reduce("mean", tf.stack([mean, mean_square])))
        variance = tf.maximum(mean_square - tf.square(mean), 0.0)
        self.moving_mean.assign_sub((self.moving_mean - mean) * (1 - self.momentum))
        self.moving_variance.assign_sub((self.moving_variance - variance) * (1 - self.momentum))

        def normalize(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
            return tf.raw_ops.FusedBatchNormV3(
                x=inputs,
                scale=gamma,
                offset=beta,
                mean=mean,
                variance=variance,
                epsilon=self.epsilon,
                is_training=False,
            ).y

        @tf.custom_gradient
        def normalize_with_gradient(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple:
            def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                direct, gamma_gradient, beta_gradient, *_ = tf.raw_ops.FusedBatchNormGradV3(
                    y_backprop=upstream,
                    x=inputs,
                    scale=gamma,
                    reserve_space_1=mean,
                    reserve_space_2=variance,
                    reserve_space_3=[],
                    epsilon=self.epsilon,
                    is_training=False,
                )
                # The mean and the variance depend on the inputs of all replicas too (Ioffe & Szegedy 2015, section 3):
                # with y the output before gamma and beta, they take gamma / std * (mean(dy) + y * mean(dy * y)) away.
                means = replicas.all_reduce("mean", tf.stack([gamma_gradient, beta_gradient])) / count
                slope, offset = tf.unstack(-gamma * tf.math.rsqrt(variance + self.epsilon) * means)
                return direct + normalize(inputs, slope, offset), gamma_gradient, beta_gradient

            return normalize(inputs, gamma, beta), gradient

        return normalize_with_gradient(inputs, gamma, beta)


class GroupNormalization(tf.keras.layers.GroupNormalization):
    """Keras's for [b, h, w, c] with static h, w and c, without its mask of the inputs' size; statistics in float32.

    Where 32 groups do not divide the channels into groups of at least two, there are fewer: a group of one channel
    would erase what a map of a single cell says.
    """

    def build(self, input_shape: tf.TensorShape) -> None:
        self.groups = max(math.gcd(2 * _GROUPS, input_shape[-1]) // 2, 1)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        _, height, width, channels = inputs.shape
        shape = [self.groups, channels // self.groups]
        groups = tf.reshape(inputs, [-1, height * width, *shape])
        mean, variance = tf.nn.moments(tf.cast(groups, tf.float32), [1, 3], keepdims=True)
        scale = tf.math.rsqrt(variance + self.epsilon) * tf.reshape(tf.cast(self.gamma, tf.float32), shape)
        shift = tf.reshape(tf.cast(self.beta, tf.float32), shape) - mean * scale
        outputs = groups * tf.cast(scale, groups.dtype) + tf.cast(shift, groups.dtype)
        return tf.reshape(outputs, [-1, height, width, channels])


def make_norm(
    config: ModelConfig, *, name: str, kind: str | None = None, zero_gamma: bool = False
) -> tf.keras.layers.Layer:
    """The layer of the given kind, one of `NORMS` (default: `config.norm`), with gamma starting at 0 or 1.

    All but "group" have the same variables, so that their checkpoints are interchangeable. One replica keeps Keras's
    layer for "sync" too.
    """
    kind = kind or config.norm
    settings = {
        "epsilon": config.batch_norm_epsilon,
        "gamma_initializer": "zeros" if zero_gamma else "ones",
        "name": name,
    }
    if kind == "group":
        return GroupNormalization(_GROUPS, **settings)
    settings["momentum"] = config.batch_norm_momentum
    if kind == "sync" and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return SyncBatchNormalization(**settings)
    return tf.keras.layers.BatchNormalization(trainable=kind != "frozen", **settings)
