"""Networks for text, in Flax linen: the paper's character LSTM and a small transformer.

Both are called as `model.apply(variables, tokens, train=bool, rngs=...)` and in
training need a `"dropout"` key if their dropout rate is not 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


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

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Computes the logits of each next character, from a state of zeros.

        Args:
          tokens: integers in [0, vocab_size), `[batch, length]`.
          train: whether to drop units.

        Returns:
          Logits, `[batch, length, vocab_size]`.
        """
        x = jax.nn.one_hot(tokens, self.vocab_size)
        for _ in range(self.num_layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.features))(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.vocab_size)(x)


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
