"""The surroundings of small trained nets: slices, planes, noise and sharpness."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console

import entropy_optax as eo
from entropy_optax import measure
from entropy_optax.experiments import data
from entropy_optax.experiments.models import MnistFC

NUM_TRAIN = 500
BATCH_SIZE = 50
RATE = 0.05
NUM_STEPS = 20
NUM_DIRECTIONS = 10
NUM_SAMPLES = 100
SIGMAS = {
    "isotropic": np.linspace(0, 0.2, 9),
    "multiplicative": np.linspace(0, 1.2, 9),
    "filter": np.linspace(0, 1.2, 9),
}
_XLABELS = {
    "isotropic": r"$\sigma$ of noise on each weight",
    "multiplicative": r"$\sigma$, in units of each weight",
    "filter": r"$\sigma$, in lengths of the filters",
}


def optimizers() -> dict[str, optax.GradientTransformation]:
    """What the nets are trained with, untuned, at one rate.

    Returns:
      Optimizers of one gradient per update.
    """
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    sgd = optax.sgd(RATE, momentum=0.9)
    return {
        "SGD": sgd,
        "SAM": optax.contrib.sam(sgd, ascent, sync_period=2),
        "Entropy-SGD": eo.entropy_sgd(
            1.0, gamma=2.0, num_steps=NUM_STEPS, step_size=RATE, momentum=0.9
        ),
    }


def compare(
    num_gradients: int, console: Console
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Trains a perceptron 196-64-10 in three ways and looks around each minimum.

    Args:
      num_gradients: of each net, a multiple of Entropy-SGD's and SAM's cycle.
      console: where progress goes.

    Returns:
      Losses, errors and sharpnesses, and the figures by name.
    """
    digits = data.load("mnist-10k", num_train=NUM_TRAIN, pool=2)
    model = MnistFC(features=(64,), dropout_rate=0.0)
    train, test = (
        {"images": jnp.asarray(split.images), "labels": jnp.asarray(split.labels)}
        for split in (digits.train, digits.test)
    )
    predict: Any = lambda params, batch: model.apply(
        {"params": params}, batch["images"], train=False
    )
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    criterion = lambda logits, batch: jnp.mean(cross_entropy(logits, batch["labels"]))
    wrong = lambda params, batch: jnp.mean(
        jnp.argmax(predict(params, batch), axis=-1) != batch["labels"]
    )
    start = model.init(jax.random.key(0), train["images"][:2], train=False)["params"]
    loss = measure.model_objective(predict, criterion, train, start)
    test_error = measure.objective(wrong, test, start, chunk_size=1000)

    nets, rows = {}, {}
    for name, tx in optimizers().items():
        batch_loss = lambda params, batch: criterion(predict(params, batch), batch)
        params = _train(batch_loss, tx, start, train, num_gradients)
        nets[name] = params
        rows[name] = _sharpnesses(loss, params) | {
            "training_loss": float(loss(params)),
            "test_error": 100 * float(test_error(params)),
        }
        console.print(f"{name}: {rows[name]}")
    figures, noise = _figures(loss, test_error, nets)
    content = {
        "rate": RATE,
        "num_gradients": num_gradients,
        "num_train": NUM_TRAIN,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(start)),
        "numbers": rows,
        "noise": noise,
    }
    return content, figures


def _train(
    loss_fn: Any, tx: Any, params: Any, train: Any, num_gradients: int
) -> dict[str, Any]:
    @jax.jit
    def run(params: Any) -> Any:
        def body(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            picked = jax.random.choice(key, NUM_TRAIN, (BATCH_SIZE,), replace=False)
            batch = jax.tree.map(lambda leaf: leaf[picked], train)
            updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(1), num_gradients)
        (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), keys)
        return params  # after whole cycles the outer iterate itself

    return run(params)


def _sharpnesses(loss: Any, params: Any) -> dict[str, float]:
    key = jax.random.key(2)
    worst = measure.adaptive_sharpness(loss, params, radius=0.05, key=key)
    mean = measure.average_sharpness(
        loss, params, radius=0.3, key=key, num_samples=NUM_SAMPLES
    )
    box = measure.epsilon_sharpness(loss, params, epsilon=1e-3, key=key)
    return {
        "epsilon_sharpness_percent": box.value,
        "adaptive_sharpness": worst.value,
        "average_sharpness": mean.value,
        "average_sharpness_standard_error": mean.standard_error,
    }


def _figures(
    loss: Any, test_error: Any, nets: dict[str, Any]
) -> tuple[dict[str, Figure], dict[str, Any]]:
    alphas = np.linspace(-1, 1, 41)
    # One key for all nets: their directions differ only by the lengths of the filters.
    keys = jax.random.split(jax.random.key(3), NUM_DIRECTIONS)
    direction = measure.filter_normalized_direction
    slices = {
        name: np.stack(
            [
                measure.slice_loss(loss, params, direction(key, params), alphas)
                for key in keys
            ]
        )
        for name, params in nets.items()
    }
    line = np.linspace(-1, 1, 25)
    planes = {
        name: measure.plane_loss(
            loss,
            params,
            direction(keys[0], params),
            direction(keys[1], params),
            line,
            line,
        )
        for name, params in nets.items()
    }
    figures = {
        "slices": measure.slice_figure(alphas, slices),
        "planes": measure.plane_figure(line, line, planes),
    }
    noise: dict[str, Any] = {}
    for kind, sigmas in SIGMAS.items():
        curves = {
            name: measure.noise_curve(
                lambda params: 100 * test_error(params),
                params,
                sigmas,
                kind=kind,  # pyright: ignore[reportArgumentType]
                num_samples=NUM_SAMPLES,
                key=jax.random.key(4),
            )
            for name, params in nets.items()
        }
        figures[f"noise_{kind}"] = measure.noise_figure(
            curves, xlabel=_XLABELS[kind], ylabel="test error, %"
        )
        noise[kind] = {
            name: {
                "sigmas": curve.sigmas.tolist(),
                "test_error": curve.values.tolist(),
                "standard_errors": curve.standard_errors.tolist(),
            }
            for name, curve in curves.items()
        }
    return figures, noise
