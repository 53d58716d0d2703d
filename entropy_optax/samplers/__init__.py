"""Inner chains: how x' moves between two gradients."""

from entropy_optax.samplers._langevin import (
    AddLangevinNoiseState as AddLangevinNoiseState,
)
from entropy_optax.samplers._langevin import add_langevin_noise as add_langevin_noise
from entropy_optax.samplers._langevin import sgld as sgld
from entropy_optax.samplers._scope import add_scope_pull as add_scope_pull
