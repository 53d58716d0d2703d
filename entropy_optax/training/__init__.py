"""Thin helpers for Flax: train steps, and BatchNorm statistics at x.

Nothing here is needed by the rest of the package; it needs the extra ``flax``.
"""

from entropy_optax.training._linen import TrainState as TrainState
from entropy_optax.training._linen import linen_carry as linen_carry
from entropy_optax.training._linen import linen_train_step as linen_train_step
