"""Experiments: data sets, models, the runner and the command line.

Nothing else in the package imports this folder, and importing it reads no file
and fetches nothing. The command line is `entropy-optax` or
`python -m entropy_optax.experiments`.
"""
