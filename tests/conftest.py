"""Settings that must stand before JAX is imported, and what all tests share."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"
_EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
if _EIGHT_DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_EIGHT_DEVICES}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Workers and the commands that tests start compile much the same: a fifth of the
    # time. They inherit the folder, which goes with the process that made it.
    _compiled = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest

# Compilation makes the first example slow, and the same examples come every time.
hypothesis.settings.register_profile(
    "fixed", deadline=None, derandomize=True, max_examples=25
)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="module")
def quick_compilation():
    """A test runs what it compiles once or twice: optimising it does not pay.

    Of the scope of the fixtures that run a study for all tests of a file.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
