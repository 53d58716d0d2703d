"""Local entropy as an Optax transformation."""

from entropy_optax.transforms._center import center_params as center_params
from entropy_optax.transforms._center import replica_distance as replica_distance
from entropy_optax.transforms._center import replica_params as replica_params
from entropy_optax.transforms._evaluation import eval_params as eval_params
from entropy_optax.transforms._evaluation import num_gradients as num_gradients
from entropy_optax.transforms._local_entropy import local_entropy as local_entropy
from entropy_optax.transforms._one_gradient import (
    LocalEntropyState as LocalEntropyState,
)
from entropy_optax.transforms._random_weight_perturbation import (
    RandomWeightPerturbationState as RandomWeightPerturbationState,
)
from entropy_optax.transforms._random_weight_perturbation import (
    random_weight_perturbation as random_weight_perturbation,
)
from entropy_optax.transforms._replica_pull import (
    AddReplicaPullState as AddReplicaPullState,
)
from entropy_optax.transforms._replica_pull import add_replica_pull as add_replica_pull
from entropy_optax.transforms._replicas import replicate as replicate
from entropy_optax.transforms._scale_by_local_entropy import (
    ScaleByLocalEntropyState as ScaleByLocalEntropyState,
)
from entropy_optax.transforms._scale_by_local_entropy import (
    scale_by_local_entropy as scale_by_local_entropy,
)
