"""Why convolutions are slow in a loop on a CPU: python benchmarks/convolution.py

XLA's CPU backend has a fast convolution for the layouts NHWC, HWIO, NHWC. A pass of the
compiler, ConvCanonicalization, transposes others into those, but visits a program's
entry computation only, not the bodies of its loops (xla/service/cpu/
conv_canonicalization.cc; https://github.com/jax-ml/jax/issues/12868). The gradient of
a convolution in those layouts has others. Transposed by hand, it is fast in a loop too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

LAYOUTS = ("NHWC", "HWIO", "NHWC")
LOOP, ROUNDS = 4, 20
# LeNet's second convolution, at batch 128.
IMAGES, KERNEL = (128, 8, 8, 20), (5, 5, 20, 50)


def kernel_gradient(images: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Return the gradient with respect to the kernel, as JAX writes it."""
    convolve = lambda kernel: lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=LAYOUTS
    )
    (gradient,) = jax.vjp(convolve, jnp.zeros(KERNEL))[1](cotangent)
    return gradient


def transposed_by_hand(images: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Return the same: channels as the batch, and the cotangent as the kernel."""
    gradient = lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        "VALID",
        dimension_numbers=LAYOUTS,
    )
    return gradient.transpose(1, 2, 0, 3)


def in_a_loop(function: Callable) -> Callable:
    def run(images, cotangent):
        def body(total, _):
            # What is added depends on the loop, or it would be computed once before.
            return total + function(images + total[0, 0, 0, 0], cotangent), None

        return lax.scan(body, jnp.zeros(KERNEL), length=LOOP)[0]

    return run


def main() -> None:
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], IMAGES)
    cotangent = jax.random.normal(keys[1], (128, 4, 4, 50))
    cases = {
        ("as JAX writes it", "on its own"): (kernel_gradient, 1),
        ("as JAX writes it", "in a scan"): (in_a_loop(kernel_gradient), LOOP),
        ("transposed by hand", "on its own"): (transposed_by_hand, 1),
        ("transposed by hand", "in a scan"): (in_a_loop(transposed_by_hand), LOOP),
    }
    jitted = {case: jax.jit(function) for case, (function, _) in cases.items()}
    times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS + 1):
        for case, function in jitted.items():
            start = time.perf_counter()
            function(images, cotangent).block_until_ready()
            times[case].append((time.perf_counter() - start) / cases[case][1])
    print("| gradient of a convolution's kernel | | ms |\n|---|---|---|")
    for case, each in times.items():
        print(f"| {case[0]} | {case[1]} | {1e3 * statistics.median(each[1:]):.2f} |")


if __name__ == "__main__":
    main()
