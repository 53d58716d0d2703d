"""Networks of runs on disk, and the command that measures them."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_optax import measure
from entropy_optax.experiments import image_task, models, networks
from entropy_optax.experiments.__main__ import main
from entropy_optax.experiments.objectives import objectives
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.tasks import make_task

TINY = (
    *("train", "--data", "tiny", "--batch-size", "8", "--num-gradients", "8"),
    *("--evaluate-every", "4", "--report-every", "4", "--entropy-sgd.num-steps", "4"),
    *("--seeds", "0", "1", "--optimizer", "sgd", "entropy_sgd"),
)


@pytest.fixture
def run(data_folder, tmp_path, monkeypatch):
    """A finished run with BatchNorm, two optimizers and two seeds."""
    small = functools.partial(
        models.MnistFC, features=(8,), batch_norm=True, dropout_rate=0.1
    )
    monkeypatch.setattr(image_task, "MODELS", {**models.MODELS, "mnistfc_bn": small})
    out = tmp_path / "run"
    assert main([*TINY, "--model", "mnistfc_bn", "--out", str(out)]) == 0
    return out


def test_a_network_comes_back_as_it_was_scored(run):
    results = json.loads((run / "results.json").read_text())
    for entry in results["runs"]:
        network = networks.load(run, entry["optimizer"], entry["seed"])
        variables = {"params": network.params, "batch_stats": network.model_state}
        score = network.task.score(variables, "test")
        assert score.error == pytest.approx(entry["test_last"]["error"])
        assert score.loss == pytest.approx(entry["test_last"]["loss"], rel=1e-5)
    assert networks.load(run).settings.optimizer == ("sgd", "entropy_sgd")


def test_objectives_are_those_of_the_network(run):
    network = networks.load(run, "sgd", 0)
    task: Any = network.task
    found = objectives(
        network.task, network.params, network.model_state, 40, chunk_size=7
    )
    images, labels = (np.asarray(a[:40]) for a in task.data)
    logits = task.logits(network.params, network.model_state, images)
    chosen = jax.nn.log_softmax(logits)[np.arange(40), labels]
    assert float(found.loss(network.params)) == pytest.approx(-float(chosen.mean()))
    wrong = np.mean(np.argmax(logits, axis=1) != labels)
    assert float(found.error(network.params)) == pytest.approx(wrong)
    assert found.description == "the first 40 training images of tiny"


def test_measure_end_to_end(run, capsys):
    arguments = ("--num-examples", "20", "--optimizer", "sgd", "--seed", "1")
    assert main(["measure", str(run), *arguments]) == 0
    printed = capsys.readouterr().out
    out = run / "measure"
    report = json.loads((out / "report.json").read_text())
    names = {path.name for path in out.iterdir()}
    assert names == {"report.json", "spectrum.png", "noise.png", "local_entropy.png"}
    network = networks.load(run, "sgd", 1)
    found = objectives(network.task, network.params, network.model_state, 20)
    exact = measure.dense_spectrum(found.loss, network.params)
    spectrum = report["spectrum"]
    assert report["num_params"] == len(exact)
    assert report["loss"] == pytest.approx(float(found.loss(network.params)), rel=1e-5)
    top = spectrum["extremes"]["largest"][0]
    assert top == pytest.approx(exact[-1], rel=1e-3)
    trace = spectrum["trace"]
    assert abs(trace["value"] - exact.sum()) < 4 * trace["standard_error"]
    assert f"{report['loss']:.5f}" in printed
    assert len(report["local_entropy"]) == 4
    for entry in report["local_entropy"]:
        assert entry["method"] != "not_converged"
        # Jensen: minus local entropy is at most the mean loss under its Gaussian.
        assert -entry["temperature"] * entry["phi"] < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", "7"), "entropy_sgd-7"),
        (("--optimizer", "adam"), "has entropy_sgd-0, entropy_sgd-1, sgd-0, sgd-1"),
        (("--num-examples", "1"), "wanted one of 2 examples or more"),
        (("--temperature", "0"), "temperature: got 0.0"),
    ],
)
def test_bad_input_is_one_line(run, capsys, arguments, message):
    capsys.readouterr()
    assert main(["measure", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["measure", str(tmp_path)]) == 2
    assert "has no result.json" in capsys.readouterr().err


def test_objectives_of_a_text(data_folder):
    text = "the quick brown fox jumps over the lazy dog. " * 40
    for name in ("train", "valid", "test"):
        (data_folder / "text").mkdir(exist_ok=True)
        (data_folder / "text" / f"{name}.txt").write_text(text)
    settings = Settings(
        model="char_lstm_small", data="text", batch_size=4, sequence_length=5
    )
    task: Any = make_task(settings)
    params, _ = task.init(jax.random.key(0))
    found = objectives(task, params, {}, 9, chunk_size=4)
    windows = jnp.asarray(task.data).reshape(-1, 6)[:9]
    logits = jnp.concatenate([task.logits(params, w[None, :-1]) for w in windows])
    chosen = jnp.take_along_axis(
        jax.nn.log_softmax(logits), windows[:, 1:, None], axis=-1
    )
    assert float(found.loss(params)) == pytest.approx(-float(chosen.mean()), rel=1e-5)
    assert found.description == "9 windows of 5 characters of text's training text"
