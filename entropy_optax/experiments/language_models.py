"""Networks for text, in Flax linen: the paper's two LSTMs and a small transformer.

The LSTMs hand on their state from one window of a text to the next. They are called as
`model.apply(variables, tokens, carry, train=bool, rngs=...)`, which returns logits and
the new carry; the first carry is `model.initial_carry(batch_size)`. No gradient flows
from a window into the one before it, whose carry is an input like the tokens.

The transformer has no state: `model.apply(variables, tokens, train=bool, rngs=...)`.
All need a `"dropout"` key in training if their dropout rate is not 0.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

# Of each layer, the cell and the hidden state, both `[batch, features]`.
Carry = tuple[tuple[jax.Array, jax.Array], ...]


class CharLSTM(nn.Module):
    """Stacked LSTMs over characters, which go in one-hot.

    Attributes:
      vocab_size: number of different characters (87 in the paper's War and Peace).
      features: units of each layer.
      num_layers: number of layers.
      dropout_rate: share of each layer's outputs dropped in training.
    """

    vocab_size: int = 87
    features: int = 128
    num_layers: int = 2
    dropout_rate: float = 0.0

    @nn.nowrap
    def initial_carry(self, batch_size: int) -> Carry:
        """Returns the state before a text's first character.

        Args:
          batch_size: number of texts side by side.

        Returns:
          Zeros, of each layer a cell and a hidden state `[batch_size, features]`.
        """
        return _zeros(self.num_layers, batch_size, self.features)

    @nn.compact
    def __call__(
        self, tokens: jax.Array, carry: Carry, *, train: bool
    ) -> tuple[jax.Array, Carry]:
        """Computes the logits of each next character.

        Args:
          tokens: integers in [0, vocab_size), `[batch, length]`.
          carry: the state before them.
          train: whether to drop units.

        Returns:
          Logits, `[batch, length, vocab_size]`, and the state after the last token.
        """
        x = jax.nn.one_hot(tokens, self.vocab_size)
        x, carry = _lstm(x, carry, self, train=train)
        return nn.Dense(self.vocab_size)(x), carry


class WordLSTM(nn.Module):
    """Stacked LSTMs over embedded words; no recurrent connection is dropped.

    For 10,000 words this has 66,022,000 parameters, the paper's 66 million.

    Attributes:
      vocab_size: number of different words (10,000 in the Penn Treebank).
      features: units of the embedding and of each layer.
      num_layers: number of layers.
      dropout_rate: share dropped in training of the embedding and of each layer's
        outputs.
    """

    vocab_size: int = 10_000
    features: int = 1500
    num_layers: int = 2
    dropout_rate: float = 0.65

    @nn.nowrap
    def initial_carry(self, batch_size: int) -> Carry:
        """Returns the state before a text's first word.

        Args:
          batch_size: number of texts side by side.

        Returns:
          Zeros, of each layer a cell and a hidden state `[batch_size, features]`.
        """
        return _zeros(self.num_layers, batch_size, self.features)

    @nn.compact
    def __call__(
        self, tokens: jax.Array, carry: Carry, *, train: bool
    ) -> tuple[jax.Array, Carry]:
        """Computes the logits of each next word.

        Args:
          tokens: integers in [0, vocab_size), `[batch, length]`.
          carry: the state before them.
          train: whether to drop units.

        Returns:
          Logits, `[batch, length, vocab_size]`, and the state after the last token.
        """
        x = nn.Embed(self.vocab_size, self.features)(tokens)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x, carry = _lstm(x, carry, self, train=train)
        return nn.Dense(self.vocab_size)(x), carry


def _zeros(num_layers: int, batch_size: int, features: int) -> Carry:
    zeros = lambda: jnp.zeros((batch_size, features))
    # Arrays of their own, so that a caller may donate all of them.
    return tuple((zeros(), zeros()) for _ in range(num_layers))


def _lstm(
    x: jax.Array, carry: Carry, model: CharLSTM | WordLSTM, *, train: bool
) -> tuple[jax.Array, Carry]:
    # The submodules become those of the model whose `__call__` this runs in.
    if len(carry) != model.num_layers:
        raise ValueError(
            f"carry: got the states of {len(carry)} layers, expected {model.num_layers}"
        )
    after = []
    for before in carry:
        layer = nn.RNN(nn.OptimizedLSTMCell(model.features))
        state, x = layer(x, initial_carry=before, return_carry=True)
        x = nn.Dropout(model.dropout_rate, deterministic=not train)(x)
        after.append(state)
    return x, tuple(after)


class Transformer(nn.Module):
    """A decoder-only transformer with normalisation before each sublayer.

    Attributes:
      vocab_size: number of tokens.
      features: width of the residual stream.
      num_layers: number of blocks of attention and a two-layer perceptron.
      num_heads: heads of each attention.
      max_length: longest sequence that has a learned position.
      dropout_rate: share of each sublayer's outputs dropped in training.
    """

    vocab_size: int = 256
    features: int = 256
    num_layers: int = 4
    num_heads: int = 4
    max_length: int = 128
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Computes the logits of each next token.

        Args:
          tokens: integers in [0, vocab_size), `[batch, length]`.
          train: whether to drop units.

        Returns:
          Logits, `[batch, length, vocab_size]`.
        """
        length = tokens.shape[-1]
        x = nn.Embed(self.vocab_size, self.features)(tokens)
        x += nn.Embed(self.max_length, self.features)(jnp.arange(length))[None]
        mask = nn.make_causal_mask(tokens)
        drop = nn.Dropout(self.dropout_rate, deterministic=not train)
        for _ in range(self.num_layers):
            attention = nn.MultiHeadDotProductAttention(self.num_heads)
            x += drop(attention(nn.LayerNorm()(x), mask=mask))
            y = nn.gelu(nn.Dense(4 * self.features)(nn.LayerNorm()(x)))
            x += drop(nn.Dense(self.features)(y))
        return nn.Dense(self.vocab_size)(nn.LayerNorm()(x))


LANGUAGE_MODELS = {
    "char_lstm": CharLSTM,
    # The size whose Hessian the paper shows.
    "char_lstm_small": partial(CharLSTM, features=48, num_layers=1),
    "word_lstm": WordLSTM,
}
