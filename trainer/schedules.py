"""Learning-rate schedules: Keras's own, behind a linear warm-up."""

import tensorflow as tf

from trainer.config import OptimizerConfig

_keras = tf.keras.optimizers.schedules


class LinearWarmup(_keras.LearningRateSchedule):
    """Rises linearly to `after(0)` over `warmup_steps` steps, then follows `after`, counted from there.

    The first step already trains: step s of the warm-up has (s + 1) / warmup_steps of the rate.
    """

    def __init__(self, after, warmup_steps: int):
        super().__init__()
        self.after = after
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        warmup = tf.cast(self.warmup_steps, tf.float32)
        rising = self.after(0) * tf.minimum(1.0, (step + 1) / tf.maximum(warmup, 1.0))
        return tf.where(step < warmup, rising, self.after(tf.maximum(step - warmup, 0.0)))

    def get_config(self):
        return {"after": self.after, "warmup_steps": self.warmup_steps}


def make_schedule(config: OptimizerConfig, train_steps: int) -> _keras.LearningRateSchedule:
    """The learning rate as a function of the step.

    Args:
      config: rate, shape and warm-up; a warm-up longer than a tenth of the run is cut to that.
      train_steps: the length of the run, warm-up included.

    Returns:
      A schedule; its value is a float32 scalar.
    """
    warmup = min(config.warmup_steps, train_steps // 10)
    rate, steps = config.learning_rate, max(1, train_steps - warmup)
    if config.lr_schedule == "constant":
        after = _keras.PiecewiseConstantDecay([float(steps)], [rate, rate])
    elif config.lr_schedule == "cosine":
        after = _keras.CosineDecay(rate, steps, alpha=config.lr_end)
    elif config.lr_schedule == "step":
        boundaries = [float(round(share * train_steps) - warmup) for share in config.lr_steps]
        after = _keras.PiecewiseConstantDecay(boundaries, [rate * 0.1**i for i in range(len(boundaries) + 1)])
    elif config.lr_schedule == "polynomial":
        after = _keras.PolynomialDecay(rate, steps, end_learning_rate=rate * config.lr_end, power=config.lr_power)
    else:
        after = _keras.ExponentialDecay(rate, steps, decay_rate=config.lr_decay)
    return LinearWarmup(after, warmup)
