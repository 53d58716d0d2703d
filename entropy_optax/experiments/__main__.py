"""Entry of `entropy-optax` and of `python -m entropy_optax.experiments`."""

import sys

from entropy_optax.experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
