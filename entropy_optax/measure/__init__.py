"""Instruments that show whether a minimum is wide, each number with its error."""

from entropy_optax.measure._checks import MeasureError
from entropy_optax.measure._estimate import Estimate, estimate
from entropy_optax.measure._objective import (
    Objective,
    gauss_newton_vector_product,
    hessian_vector_product,
    model_objective,
    objective,
)

__all__ = [
    "Estimate",
    "MeasureError",
    "Objective",
    "estimate",
    "gauss_newton_vector_product",
    "hessian_vector_product",
    "model_objective",
    "objective",
]
