"""What matters for Entropy-SGD: one setting at a time away from the tuned ones."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from entropy_optax.experiments import comparison, flat_minima, methods, report
from entropy_optax.experiments.compiled import compile_step, draw, member
from entropy_optax.experiments.grid import with_fields
from entropy_optax.experiments.hyperparameters import EntropySGDSettings, resolved
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Member, last_test_errors
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.statistics import paired_bootstrap
from entropy_optax.experiments.tasks import make_task

# Not those of `compare`, whose results are known by now.
SEEDS = tuple(range(300, 310))


def variants(base: EntropySGDSettings) -> list[tuple[str, str, dict[str, Any]]]:
    """The settings that are tried.

    Args:
      base: the tuned settings.

    Returns:
      Question, label and the fields that differ from `base`.
    """
    # effective_rate and pull stay as they are where they are not the question.
    # What the decay takes off x in an outer step when it is inside:
    rate = base.effective_rate or 0.0
    outside = 10 * rate * base.weight_decay * base.num_steps
    found: list[tuple[str, str, dict[str, Any]]] = []
    found += [("L", f"{n}", {"num_steps": n}) for n in (1, 5, 10, 20, 50, 100)]
    found += [
        ("effective rate", f"{2.0**k:g} times", {"effective_rate": 2.0**k * rate})
        for k in (-1, 1)
    ]
    found += [
        ("step_size x gamma", f"{v:g}", {"pull": v})
        for v in (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    ]
    found += [
        ("growth of gamma", f"{v:g}", {"gamma_growth": v}) for v in (0.0, 1e-3, 1e-2)
    ]
    found += [
        ("temperature", f"{v:g}", {"temperature": v, "noise": "gaussian"})
        for v in (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    ]
    found += [("annealed rate", v, {"anneal": v}) for v in ("inner", "outer", "both")]
    found += [
        (
            "decay outside",
            f"{factor:g} times as strong",
            {"weight_decay": 0.0, "outer_weight_decay": factor * outside},
        )
        for factor in (0.0, 0.1, 0.3, 1.0)
        if base.weight_decay
    ]
    found += [
        ("outer rate", f"{v:g}", {"learning_rate": v}) for v in (0.25, 0.5, 1.0, 1.5)
    ]
    found += [
        (
            "outer momentum, rate 1 - m",
            f"{m:g}",
            {"outer_momentum": m, "learning_rate": 1 - m},
        )
        for m in (0.5, 0.9)
    ]
    found += [("inner momentum", f"{m:g}", {"momentum": m}) for m in (0.0, 0.5, 0.9)]
    found += [
        ("weight of the old mean", f"{v:g}", {"mean_decay": v})
        for v in (0.0, 0.25, 0.5, 0.75, 0.9)
    ]
    found.append(("weight of the old mean", "plain average", {"plain_average": True}))
    found += [
        ("clip of the gradient's norm", f"{c:g}", {"clip_norm": c}) for c in (1.0, 5.0)
    ]
    return found


def transfers(
    scenario: str, base: EntropySGDSettings, out: pathlib.Path
) -> list[tuple[str, str, dict[str, Any]]]:
    """The settings that were tuned on other scenarios.

    Args:
      scenario: the one in question.
      base: its own tuned settings.
      out: folder of the study.

    Returns:
      As `variants`, for each other scenario that has been compared.
    """
    own = dataclasses.asdict(base)
    found: list[tuple[str, str, dict[str, Any]]] = []
    for name in flat_minima.SCENARIOS:
        if name != scenario and (out / name / "compare.json").exists():
            other = dataclasses.asdict(flat_minima.tuned(name, out).entropy_sgd)
            fields = {key: v for key, v in other.items() if v != own[key]}
            found.append(("as tuned on", name, fields))
    return found


def changed(settings: Settings, fields: dict[str, Any]) -> Settings:
    """Settings with one of the variants.

    Args:
      settings: tuned ones.
      fields: of the variant.

    Returns:
      The settings: a clip belongs to all optimizers, the rest to Entropy-SGD.
    """
    shared = {name: v for name, v in fields.items() if name == "clip_norm"}
    own = {name: v for name, v in fields.items() if name not in shared}
    settings = dataclasses.replace(settings, **shared)
    return with_fields(settings, "entropy_sgd", own)


def measure(scenario: str, out: pathlib.Path, console: Console) -> None:
    """Runs all variants with ten own seeds, paired with the tuned ones; resumable.

    Args:
      scenario: its name, tuned before.
      out: folder of the study.
      console: where progress goes.
    """
    settings = flat_minima.tuned(scenario, out)
    experiment = Experiment(settings, make_task(settings))
    memo = Memo(out / scenario / "ablation.part", (settings, SEEDS))

    def errors(fields: dict[str, Any]) -> list[float]:
        own = changed(settings, fields)
        members = [Member(seed, own) for seed in SEEDS]
        find = lambda: last_test_errors(experiment.run_together("entropy_sgd", members))
        return memo(f"{fields}", find)

    reference = errors({})
    rows = []
    tried = variants(settings.entropy_sgd)
    tried += transfers(scenario, settings.entropy_sgd, out)
    for question, label, fields in tried:
        found = errors(fields)
        rows.append(
            {
                "question": question,
                "value": label,
                "fields": fields,
                "test_error": found,
                "against_tuned": paired_bootstrap(found, reference),
            }
        )
        console.print(f"{scenario}: {question} {label}: {report.estimate(found)} %")
    content = {
        "scenario": scenario,
        "settings": settings,
        "seeds": SEEDS,
        "reference": reference,
        "rows": rows,
        "x_or_mean": [
            memo(f"x or mean at {rate:g}", functools.partial(x_or_mean, settings, rate))
            for rate in (0.25, 0.5, 1.0)
        ],
    }
    comparison.write_json(out / scenario / "ablation.json", content)
    memo.remove()


def x_or_mean(settings: Settings, rate: float) -> dict[str, Any]:
    """Evaluates x and the mean mu of the last inner loop, at the same runs.

    Args:
      settings: tuned ones.
      rate: outer rate, constant and without momentum: x moves by that share of the way
        to mu, from which mu is found again.

    Returns:
      Test errors at both, one for each seed.
    """
    group = dataclasses.replace(resolved(settings.entropy_sgd), learning_rate=rate)
    # A cosine would end where x and mu are one.
    own = dataclasses.replace(
        settings,
        entropy_sgd=group,
        rate_schedule="constant",
        report_every=group.num_steps,
    )
    task = make_task(own)
    step = compile_step(task, "entropy_sgd", own, len(SEEDS))
    traced, _ = methods.split_settings("entropy_sgd", own)
    traced = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(SEEDS)), traced)
    arrays = step.init(traced, jnp.stack([jax.random.key(seed) for seed in SEEDS]))
    streams = [task.indices(seed) for seed in SEEDS]
    before = arrays["params"]
    for _ in range(own.num_gradients // own.report_every):
        # A copy, because the step donates its state.
        before = jax.tree.map(jnp.copy, arrays["params"])
        indices = draw(streams, own.report_every)
        arrays, _ = step.advance(arrays, traced, task.data, indices)
    mean = jax.tree.map(lambda b, x: b + (x - b) / rate, before, arrays["params"])
    found: dict[str, Any] = {"learning_rate": rate}
    for name, params in (("x", arrays["params"]), ("mean", mean)):
        found[name] = [
            task.score(task.variables(member(params, i), {}), "test").error
            for i in range(len(SEEDS))
        ]
    return found
