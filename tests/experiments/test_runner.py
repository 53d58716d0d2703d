"""The runner: seeds together, hidden states, the splits, stopping and going on."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_task import ToyTask

from entropy_optax.experiments import compiled, image_task, models, runner, settings
from entropy_optax.experiments.checkpoints import Checkpoints
from entropy_optax.experiments.data import DataError
from entropy_optax.experiments.runs import Member, Stopped
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.tasks import make_task
from entropy_optax.experiments.text import TextDataset
from entropy_optax.experiments.text_task import TextTask

TOY = Settings(
    batch_size=2,
    num_gradients=20,
    report_every=10,
    evaluate_every=10,
    entropy_sgd=settings.EntropySGDSettings(num_steps=5, temperature=1e-6),
    averaging_alone=settings.EntropySGDSettings(num_steps=5, temperature=0.0),
    reset_alone=settings.EntropySGDSettings(num_steps=5, temperature=0.0),
)
TEXT = Settings(
    model="char_lstm",
    features=8,
    batch_size=2,
    sequence_length=4,
    num_gradients=8,
    report_every=4,
    evaluate_every=4,
    entropy_sgd=settings.EntropySGDSettings(num_steps=4),
)


def text_task(chosen, *, length=33):
    """ "abcd" again and again; 33 tokens are four windows of two streams of four."""
    part = lambda n: np.arange(n, dtype=np.int32) % 4
    symbols = (b"a", b"b", b"c", b"d")
    dataset = TextDataset("abcd", 4, symbols, part(length), part(85), part(90))
    return TextTask(chosen, dataset)


def numbers(run):
    """All of a result but times."""
    return run._replace(seconds=0, evaluation_seconds=0, compile_seconds=0)


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "schedule_free", "entropy_sgd"])
def test_members_together_are_single_runs(optimizer):
    """To rounding; they differ in seeds and in hyperparameters that are traced."""
    group = getattr(TOY, optimizer)
    field = "step_size" if hasattr(group, "step_size") else "learning_rate"
    members = []
    for seed, factor in ((0, 1.0), (1, 1.0), (1, 0.3)):
        rate = factor * getattr(group, field)
        other = dataclasses.replace(group, **{field: rate})
        chosen = dataclasses.replace(TOY, **{optimizer: other})
        members.append(Member(seed, chosen))
    task = ToyTask()
    experiment = runner.Experiment(TOY, task)
    together = experiment.run_together(optimizer, members)
    assert [split for split, _ in task.scored] == ["validation"] * 6 + ["test"] * 6
    singles = [experiment.run(optimizer, m.seed, m.settings) for m in members]
    for one, single in zip(together, singles, strict=True):
        assert (one.seed, one.gradients) == (single.seed, 20)
        assert one.chosen_gradients == single.chosen_gradients
        for name in ("training_loss", "curve", "test_last", "test_chosen"):
            np.testing.assert_allclose(
                getattr(one, name), getattr(single, name), rtol=1e-4
            )
    # The three are different runs.
    assert len({round(run.training_loss, 5) for run in singles}) == 3


def test_members_may_not_differ_in_the_program():
    experiment = runner.Experiment(TOY, ToyTask())
    for change in (
        {"clip_norm": 1.0},
        {"rate_schedule": "constant"},
        {"evaluate_every": 20},
        {"sgd": settings.SGDSettings(momentum=0.5)},
    ):
        other = dataclasses.replace(TOY, **change)
        with pytest.raises(ValueError, match="members: differ"):
            experiment.run_together("sgd", [Member(0, TOY), Member(0, other)])


def test_a_compiled_step_is_not_used_for_another_program():
    experiment = runner.Experiment(TOY, ToyTask())
    other = dataclasses.replace(TOY, clip_norm=0.1, rate_schedule="constant")
    first, second = (experiment.run("sgd", 0, chosen) for chosen in (TOY, other))
    assert second == runner.Experiment(other, ToyTask()).run("sgd", 0)._replace(
        **{name: getattr(second, name) for name in second._fields if "seconds" in name}
    )
    assert first.curve != second.curve


@pytest.mark.parametrize("optimizer", settings.GROUPS[:7])  # the rest is as the 7th
def test_stopping_changes_nothing(optimizer, tmp_path):
    """Bit for bit, with the numbers of what had been measured before."""
    experiment = runner.Experiment(TOY, ToyTask())
    whole = experiment.run(optimizer, 3)
    seen = []
    with Checkpoints(tmp_path, seconds=1e6) as checkpoints:

        def stop(progress):
            seen.append(progress.gradients)
            checkpoints.stop = True

        with pytest.raises(Stopped):
            experiment.run(optimizer, 3, report=stop, checkpoints=checkpoints)
    with Checkpoints(tmp_path, seconds=1e6) as checkpoints:
        assert checkpoints.gradients == 10
        report = lambda progress: seen.append(progress.gradients)
        rest = experiment.run(optimizer, 3, report=report, checkpoints=checkpoints)
    assert seen == [10, 20]
    assert numbers(rest) == numbers(whole)
    assert rest.seconds > 0


def test_members_together_stop_and_go_on(tmp_path):
    members = [Member(seed, TOY) for seed in (0, 1)]
    experiment = runner.Experiment(TOY, ToyTask())
    whole = experiment.run_together("ema", members)
    with Checkpoints(tmp_path, seconds=1e6) as checkpoints:
        checkpoints.stop = True
        with pytest.raises(Stopped):
            experiment.run_together("ema", members, checkpoints=checkpoints)
        checkpoints.stop = False
        rest = experiment.run_together("ema", members, checkpoints=checkpoints)
    assert [numbers(run) for run in rest] == [numbers(run) for run in whole]


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "entropy_sgd"])
def test_hidden_state_follows_the_text(optimizer):
    """It is handed on from window to window and starts anew with each epoch.

    With rates of 0 the params stay, so that reading the windows gives all states. Both
    gradients of SAM on one window start from one state.
    """
    groups = {
        name: dataclasses.replace(getattr(TEXT, name), **change)
        for name, change in (
            ("sgd", {"learning_rate": 0.0}),
            ("sam", {"learning_rate": 0.0, "radius": 0.0}),
            ("entropy_sgd", {"step_size": 0.0, "temperature": 0.0}),
        )
    }
    chosen = dataclasses.replace(TEXT, report_every=2, **groups)
    if optimizer == "entropy_sgd":
        group = dataclasses.replace(groups[optimizer], num_steps=2)
        chosen = dataclasses.replace(chosen, entropy_sgd=group)
    task = text_task(chosen)
    assert task.batches_per_epoch == 4
    step = compiled.compile_step(task, optimizer, chosen, 1)
    traced, _ = runner.methods.split_settings(optimizer, chosen)
    traced = jax.tree.map(lambda leaf: leaf[None], traced)
    arrays = step.init(traced, jax.random.key(0)[None])
    params = compiled.member(arrays["params"], 0)
    read = jax.jit(
        lambda window, carry: task._model.apply(
            {"params": params}, task.data[window, :, :-1], carry, train=False
        )[1]
    )
    zeros = task._model.initial_carry(2)
    befores, carry = [], zeros
    for window in (0, 1, 2, 3, 0, 1):
        carry = zeros if window == 0 else carry
        befores.append(carry)
        carry = read(window, carry)
    repeat = compiled.repeats(chosen, optimizer)
    stream, done = task.indices(0), 0
    for _ in range(3 * repeat):
        count = 2 // repeat
        indices = np.stack(list(itertools.islice(stream, count)))
        arrays, _ = step.advance(arrays, traced, task.data, indices[None])
        done += count
        state = compiled.member(arrays["model_state"], 0)
        assert int(state["number"]) == done - 1
        wanted = befores[done - 1], read((done - 1) % 4, befores[done - 1])
        for leaf, other in zip(
            jax.tree.leaves((state["before"], state["after"])),
            jax.tree.leaves(wanted),
            strict=True,
        ):
            np.testing.assert_allclose(leaf, other, atol=1e-6)
    # Windows matter: a state of zeros would give something else.
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(befores[1])) > 1e-3


def test_a_text_is_learned_and_its_loss_decides():
    chosen = dataclasses.replace(
        TEXT,
        num_gradients=160,
        report_every=40,
        evaluate_every=40,
        adam=settings.AdamSettings(learning_rate=0.02),
    )
    task = text_task(chosen, length=101)
    splits, score = [], task.score
    task.score = lambda variables, split: (
        splits.append(split) or score(variables, split)
    )
    run = runner.Experiment(chosen, task).run("adam", 0)
    assert splits == ["validation"] * 4 + ["test"] * 2
    assert run.test_last is not None
    assert run.test_last.loss < 0.2 < math.log(4)  # that is chance
    losses = [value for _, value in run.curve]
    assert losses[-1] == run.validation_last.loss
    assert min(losses) == run.validation_chosen.loss
    assert run.chosen_gradients == run.curve[int(np.argmin(losses))][0]


def test_images_are_chosen_by_their_error(data_folder, monkeypatch):
    small = functools.partial(models.MnistFC, features=(16,))
    monkeypatch.setattr(image_task, "MODELS", {"mnistfc": small})
    chosen = Settings(
        model="mnistfc",
        data="tiny",
        batch_size=8,
        num_gradients=8,
        report_every=2,
        evaluate_every=2,
    )
    task = make_task(chosen)
    assert isinstance(task, image_task.ImageTask)
    read, measure = [], task._evaluator.score
    names = {id(getattr(task.dataset, n).images): n for n in ("validation", "test")}
    task._evaluator.score = lambda variables, split: (
        read.append(names[id(split.images)]) or measure(variables, split)
    )
    run = runner.Experiment(chosen, task).run("sgd", 0)
    # The test images are read after everything else: for the last and the chosen point.
    assert read == ["validation"] * 4 + ["test"] * 2
    errors = [value for _, value in run.curve]
    assert run.validation_last.error == errors[-1]
    assert run.validation_chosen.error == min(errors)
    assert run.chosen_gradients == run.curve[int(np.argmin(errors))][0]


def test_a_text_too_short_to_measure_is_found_at_once():
    chosen = dataclasses.replace(TEXT, sequence_length=5)  # 20 x 5 + 1 > 90
    with pytest.raises(DataError, match="expected at least 101"):
        text_task(chosen, length=100)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sam", "entropy_sgd"])
@pytest.mark.parametrize("make", [lambda: (TOY, ToyTask()), lambda: (TEXT, None)])
def test_size_of_a_checkpoint(optimizer, make):
    chosen, task = make()
    task = text_task(chosen) if task is None else task
    init, _ = compiled._functions(task, optimizer, chosen)
    traced, _ = runner.methods.split_settings(optimizer, chosen)
    arrays = jax.jit(init)(traced, jax.random.key(0))
    key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    size = lambda leaf: (jax.random.key_data(leaf) if key(leaf) else leaf).nbytes
    saved = arrays, arrays["params"], arrays["model_state"]
    wanted = sum(map(size, jax.tree.leaves(saved)))
    assert compiled.state_bytes(task, optimizer, chosen) == wanted
