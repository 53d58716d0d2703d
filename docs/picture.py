"""Draw the README's picture: local entropy moves the minimum into the wide valley.

A landscape with a deep sharp valley and a shallower wide one; minus its local entropy
by quadrature; and where 1,000 runs of gradient descent and of Entropy-SGD end, from
uniform starts, at the same number of gradients. Run it with ``python docs/picture.py``.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import entropy_optax as eo

GAMMA, TEMPERATURE, NUM_STEPS, STEP_SIZE = 1.0, 0.2, 20, 0.02
NUM_GRADIENTS, NUM_RUNS = 20_000, 1000
SHARP, WIDE = -1.5, 1.5
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#555555"


def landscape(x):
    """Return f(x): a bowl with a sharp valley, depth 1, and a wide one, depth 0.8."""
    sharp = jnp.exp(-(((x - SHARP) / 0.1) ** 2) / 2)
    wide = 0.8 * jnp.exp(-(((x - WIDE) / 0.8) ** 2) / 2)
    return 1.0 + 0.01 * x**2 - sharp - wide


def minus_local_entropy(x, gamma):
    """Return -F(x, gamma) up to a constant, by quadrature on a grid."""
    grid = np.linspace(-9, 9, 4001)
    energy = np.asarray(landscape(grid))[None, :] + gamma / 2 * (x[:, None] - grid) ** 2
    lowest = energy.min(axis=1, keepdims=True)
    mass = np.trapezoid(np.exp(-(energy - lowest) / TEMPERATURE), grid, axis=1)
    normal = np.sqrt(2 * np.pi * TEMPERATURE / gamma)
    return lowest[:, 0] - TEMPERATURE * np.log(mass / normal)


def end_points(tx, starts):
    """Return where the runs of an optimizer end, shape (NUM_RUNS,)."""

    def run(start, key):
        state = tx.init(start)
        if isinstance(state, eo.LocalEntropyState):
            state = optax.tree.set(state, rng_key=key)

        def body(loop, _):
            params, state = loop
            updates, state = tx.update(jax.grad(landscape)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(body, (start, state), length=NUM_GRADIENTS)
        return params  # after whole cycles, so x itself

    keys = jax.random.split(jax.random.key(0), starts.size)
    return np.asarray(jax.jit(jax.vmap(run))(starts, keys))


def main(path: Path) -> None:
    """Draw the picture into a PNG file and print the shares of the two valleys."""
    x = np.linspace(-4, 4, 1000)
    starts = jnp.linspace(-4, 4, NUM_RUNS)
    runs = {
        "gradient descent": (end_points(optax.sgd(STEP_SIZE), starts), ORANGE),
        "Entropy-SGD": (
            end_points(
                eo.entropy_sgd(
                    1.0,
                    gamma=GAMMA,
                    num_steps=NUM_STEPS,
                    step_size=STEP_SIZE,
                    temperature=TEMPERATURE,
                    momentum=None,
                ),
                starts,
            ),
            BLUE,
        ),
    }
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 4.6), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    f = np.asarray(landscape(x))
    top.plot(x, f, color=GREY, lw=1.5, label="loss $f$")
    top.plot(x[f.argmin()], f.min(), "v", color=GREY, ms=9)
    smooth = minus_local_entropy(x, GAMMA)
    label = f"minus local entropy $-F$, $\\gamma$ = {GAMMA:g}, $T$ = {TEMPERATURE:g}"
    top.plot(x, smooth, color=BLUE, lw=2.5, label=label)
    top.plot(x[smooth.argmin()], smooth.min(), "v", color=BLUE, ms=9)
    top.set_ylabel("loss")
    top.set_ylim(-0.05, 1.45)
    top.legend(frameon=False, loc="upper center", ncols=2)
    bins = np.linspace(-4, 4, 81)
    for name, (ends, colour) in runs.items():
        wide = np.mean(ends > 0.5)
        print(f"{name}: {100 * wide:.1f} % of {NUM_RUNS} runs end in the wide valley")
        bottom.hist(
            ends,
            bins,
            color=colour,
            alpha=0.7,
            label=f"{name}: {100 * wide:.0f} % in the wide valley",
        )
    bottom.set(xlabel="parameter $x$", ylabel=f"of {NUM_RUNS} runs", yscale="log")
    bottom.set_ylim(0.7, 3e4)
    bottom.legend(frameon=False, loc="upper center", ncols=2, fontsize=9)
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(Path(__file__).with_name("picture.png"))
