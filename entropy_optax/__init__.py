"""Entropy-SGD for JAX, as composable Optax transformations."""

from entropy_optax._alias import entropy_adam as entropy_adam
from entropy_optax._alias import entropy_sgd as entropy_sgd
from entropy_optax.samplers import AddLangevinNoiseState as AddLangevinNoiseState
from entropy_optax.samplers import add_langevin_noise as add_langevin_noise
from entropy_optax.samplers import add_scope_pull as add_scope_pull
from entropy_optax.samplers import sgld as sgld
from entropy_optax.schedules import (
    bounded_exponential_scoping as bounded_exponential_scoping,
)
from entropy_optax.schedules import exponential_scoping as exponential_scoping
from entropy_optax.schedules import linear_scoping as linear_scoping
from entropy_optax.schedules import quadratic_scoping as quadratic_scoping
from entropy_optax.schedules import temperature_from_noise as temperature_from_noise
from entropy_optax.transforms import LocalEntropyState as LocalEntropyState
from entropy_optax.transforms import (
    ScaleByLocalEntropyState as ScaleByLocalEntropyState,
)
from entropy_optax.transforms import eval_params as eval_params
from entropy_optax.transforms import local_entropy as local_entropy
from entropy_optax.transforms import num_gradients as num_gradients
from entropy_optax.transforms import scale_by_local_entropy as scale_by_local_entropy

__version__ = "0.1.0"
