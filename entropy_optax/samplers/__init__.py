"""Inner chains: how x' moves between two gradients."""

from entropy_optax.samplers._geometry import filter_geometry as filter_geometry
from entropy_optax.samplers._geometry import leaf_geometry as leaf_geometry
from entropy_optax.samplers._heat import heat as heat
from entropy_optax.samplers._langevin import (
    AddLangevinNoiseState as AddLangevinNoiseState,
)
from entropy_optax.samplers._langevin import add_langevin_noise as add_langevin_noise
from entropy_optax.samplers._langevin import sgld as sgld
from entropy_optax.samplers._scope import add_scope_pull as add_scope_pull
