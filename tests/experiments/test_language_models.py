"""Networks for text: causal, and with a state that continues over windows."""

import jax
import numpy as np
import pytest

from entropy_optax.experiments.language_models import (
    LANGUAGE_MODELS,
    CharLSTM,
    Transformer,
    WordLSTM,
)
from entropy_optax.experiments.text import batchify


def test_names():
    assert LANGUAGE_MODELS["char_lstm"] is CharLSTM
    assert LANGUAGE_MODELS["word_lstm"] is WordLSTM


@pytest.mark.parametrize(
    "model",
    [
        CharLSTM(vocab_size=7, features=8, dropout_rate=0.5),
        WordLSTM(vocab_size=7, features=8),
        Transformer(vocab_size=7, features=8, num_heads=2, dropout_rate=0.5),
    ],
    ids=["char-lstm", "word-lstm", "transformer"],
)
def test_language_models(model):
    """No logit sees a later token; dropout acts in training alone."""
    tokens = jax.random.randint(jax.random.key(0), (3, 6), 0, 7)
    recurrent = not isinstance(model, Transformer)
    carry = (model.initial_carry(3),) if recurrent else ()
    first = lambda out: out[0] if recurrent else out
    init = lambda key: model.init(key, tokens, *carry, train=False)
    variables = jax.jit(init)(jax.random.key(1))
    evaluate = jax.jit(
        lambda tokens: first(model.apply(variables, tokens, *carry, train=False))
    )
    logits = evaluate(tokens)
    assert logits.shape == (3, 6, 7)
    later = evaluate(tokens.at[:, 4].set((tokens[:, 4] + 1) % 7))
    np.testing.assert_allclose(later[:, :4], logits[:, :4], atol=1e-6)
    assert np.all(np.max(np.abs(later - logits)[:, 4:], axis=-1) > 1e-6)

    @jax.jit
    def train(key):
        rngs = {"dropout": key}
        return first(model.apply(variables, tokens, *carry, train=True, rngs=rngs))

    assert not np.allclose(train(jax.random.key(2)), train(jax.random.key(3)))
    assert not np.allclose(train(jax.random.key(2)), logits)


@pytest.mark.parametrize("network", [CharLSTM, WordLSTM])
def test_the_carry_continues_a_text(network):
    """Two windows with the carry handed on are one long window."""
    model = network(vocab_size=7, features=8)
    stream = np.random.default_rng(0).integers(0, 7, 2 * 3 * 5 + 1)
    windows = batchify(stream, batch_size=3, length=5)
    whole = batchify(stream, batch_size=3, length=10)
    zeros = model.initial_carry(3)
    assert [state.shape for state in jax.tree.leaves(zeros)] == [(3, 8)] * 4
    assert not any(state.any() for state in jax.tree.leaves(zeros))
    init = lambda key: model.init(key, windows[0, :, :-1], zeros, train=False)
    variables = jax.jit(init)(jax.random.key(1))
    apply = jax.jit(
        lambda tokens, carry: model.apply(variables, tokens, carry, train=0)
    )
    first, middle = apply(windows[0, :, :-1], zeros)
    second, last = apply(windows[1, :, :-1], middle)
    expected, end = apply(whole[0, :, :-1], zeros)
    both = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(both, expected, atol=1e-6)
    for got, wanted in zip(*map(jax.tree.leaves, (last, end)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    fresh, _ = apply(windows[1, :, :-1], zeros)
    assert not np.allclose(fresh, second, atol=1e-4)
    with pytest.raises(ValueError, match="carry: got the states of 1 layers"):
        apply(windows[0, :, :-1], zeros[:1])
