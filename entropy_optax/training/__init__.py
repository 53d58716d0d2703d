"""Thin helpers for Flax: train steps, and BatchNorm statistics at x.

Nothing here is needed by the rest of the package; it needs the extra ``flax``.
"""

from entropy_optax.training._batch_stats import (
    reestimate_batch_stats as reestimate_batch_stats,
)
from entropy_optax.training._linen import TrainState as TrainState
from entropy_optax.training._linen import linen_carry as linen_carry
from entropy_optax.training._linen import linen_train_step as linen_train_step
from entropy_optax.training._nnx import nnx_carry as nnx_carry
from entropy_optax.training._nnx import nnx_eval_model as nnx_eval_model
from entropy_optax.training._nnx import nnx_reestimate as nnx_reestimate
from entropy_optax.training._nnx import nnx_train_step as nnx_train_step
