"""Schedules of the scope and the temperature."""

from entropy_optax.schedules._scoping import automatic_scoping as automatic_scoping
from entropy_optax.schedules._scoping import (
    bounded_exponential_scoping as bounded_exponential_scoping,
)
from entropy_optax.schedules._scoping import exponential_scoping as exponential_scoping
from entropy_optax.schedules._scoping import linear_scoping as linear_scoping
from entropy_optax.schedules._scoping import quadratic_scoping as quadratic_scoping
from entropy_optax.schedules._temperature import (
    temperature_from_noise as temperature_from_noise,
)
