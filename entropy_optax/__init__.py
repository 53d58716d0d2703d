"""Entropy-SGD for JAX, as composable Optax transformations."""

from entropy_optax._alias import entropy_adam as entropy_adam
from entropy_optax._alias import entropy_sgd as entropy_sgd
from entropy_optax._filter_entropy import filter_entropy_sgd as filter_entropy_sgd
from entropy_optax._replicated import elastic_averaging as elastic_averaging
from entropy_optax._replicated import parle as parle
from entropy_optax._replicated import replicated_sgd as replicated_sgd
from entropy_optax.samplers import AddLangevinNoiseState as AddLangevinNoiseState
from entropy_optax.samplers import add_langevin_noise as add_langevin_noise
from entropy_optax.samplers import add_scope_pull as add_scope_pull
from entropy_optax.samplers import filter_geometry as filter_geometry
from entropy_optax.samplers import heat as heat
from entropy_optax.samplers import leaf_geometry as leaf_geometry
from entropy_optax.samplers import sgld as sgld
from entropy_optax.schedules import automatic_scoping as automatic_scoping
from entropy_optax.schedules import (
    bounded_exponential_scoping as bounded_exponential_scoping,
)
from entropy_optax.schedules import exponential_scoping as exponential_scoping
from entropy_optax.schedules import linear_scoping as linear_scoping
from entropy_optax.schedules import quadratic_scoping as quadratic_scoping
from entropy_optax.schedules import temperature_from_noise as temperature_from_noise
from entropy_optax.transforms import AddReplicaPullState as AddReplicaPullState
from entropy_optax.transforms import LocalEntropyState as LocalEntropyState
from entropy_optax.transforms import (
    RandomWeightPerturbationState as RandomWeightPerturbationState,
)
from entropy_optax.transforms import (
    ScaleByLocalEntropyState as ScaleByLocalEntropyState,
)
from entropy_optax.transforms import add_replica_pull as add_replica_pull
from entropy_optax.transforms import center_params as center_params
from entropy_optax.transforms import eval_params as eval_params
from entropy_optax.transforms import local_entropy as local_entropy
from entropy_optax.transforms import num_gradients as num_gradients
from entropy_optax.transforms import (
    random_weight_perturbation as random_weight_perturbation,
)
from entropy_optax.transforms import replica_distance as replica_distance
from entropy_optax.transforms import replica_params as replica_params
from entropy_optax.transforms import replicate as replicate
from entropy_optax.transforms import scale_by_local_entropy as scale_by_local_entropy

__version__ = "0.1.0"
