"""Convolution and pooling that stay fast inside a loop on a CPU.

XLA's CPU backend runs a convolution's gradient in the body of a `while` loop tens
of times slower than a matrix product of the same size, and the whole inner loop of
Entropy-SGD is such a body. Here a convolution is shifted slices, two
concatenations and one matrix product: the same numbers up to rounding. Hand it to
your own model with `nn.Conv(..., conv_general_dilated=conv_general_dilated)`, in linen
as in nnx.
"""

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    out_sharding=None,
) -> jax.Array:
    """Two-dimensional convolution as one matrix product on a CPU.

    Has the signature that `Conv(conv_general_dilated=...)` of Flax calls, in linen and
    nnx. On any other backend than a CPU it is `jax.lax.conv_general_dilated` itself.

    Args:
      lhs: images, `[batch, height, width, channels]`.
      rhs: kernel, `[kernel height, kernel width, channels, features]`.
      window_strides: two positive integers.
      padding: `"SAME"`, `"VALID"` or a `(low, high)` pair for height and for width.
      lhs_dilation: two positive integers, the spacing of the pixels; None for ones.
      rhs_dilation: two positive integers, the spacing of the kernel's entries.
      dimension_numbers: must mean NHWC, HWIO, NHWC.
      feature_group_count: must be 1.
      precision: as in `jax.lax.dot_general`.
      preferred_element_type: dtype to accumulate in and to return, or None.
      out_sharding: must be None.

    Returns:
      The convolved images, `[batch, out height, out width, features]`.

    Raises:
      NotImplementedError: if groups, another layout, a sharding, or named padding of
        dilated images is asked for.
      ValueError: if ranks or channels do not fit, or the kernel is larger than the
        padded image.
    """
    _check(lhs, rhs, dimension_numbers, feature_group_count)
    if out_sharding is not None:
        raise NotImplementedError(f"out_sharding: got {out_sharding}, only None works")
    spacing = tuple(lhs_dilation or (1, 1))
    dilation_h, dilation_w = rhs_dilation or (1, 1)
    kernel_h, kernel_w, channels, features = rhs.shape
    # What the kernel spans, with the gaps between its entries.
    span_h, span_w = (kernel_h - 1) * dilation_h + 1, (kernel_w - 1) * dilation_w + 1
    stride_h, stride_w = window_strides
    if isinstance(padding, str):
        if spacing != (1, 1):
            raise NotImplementedError(
                f"padding: got {padding!r}, dilated images need (low, high) pairs"
            )
        padding = lax.padtype_to_pads(
            lhs.shape[1:3], (span_h, span_w), window_strides, padding
        )
    height, width = (
        (size - 1) * gap + 1 + low + high
        for size, gap, (low, high) in zip(lhs.shape[1:3], spacing, padding, strict=True)
    )
    if height < span_h or width < span_w:
        raise ValueError(
            f"rhs: a kernel of {span_h} x {span_w} is larger than the padded image,"
            f" {height} x {width}"
        )
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=spacing,
            rhs_dilation=(dilation_h, dilation_w),
            dimension_numbers=_NHWC,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    if spacing != (1, 1) or any(low or high for low, high in padding):
        # Negative padding crops and gaps are filled, neither of which jnp.pad knows.
        edges = [
            (low, high, gap - 1)
            for (low, high), gap in zip(padding, spacing, strict=True)
        ]
        edges = [(0, 0, 0), *edges, (0, 0, 0)]
        lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), edges)
    out_h = (height - span_h) // stride_h + 1
    out_w = (width - span_w) // stride_w + 1
    # Columns first, rows second: the second concatenation then copies runs of
    # kernel_w * channels numbers, and 10 copies are made instead of 25 for 5 x 5.
    end_w = (out_w - 1) * stride_w + 1
    columns = jnp.concatenate(
        [lhs[:, :, j : j + end_w : stride_w] for j in range(0, span_w, dilation_w)],
        axis=-1,
    )
    end_h = (out_h - 1) * stride_h + 1
    patches = jnp.concatenate(
        [columns[:, i : i + end_h : stride_h] for i in range(0, span_h, dilation_h)],
        axis=-1,
    )
    out = jnp.matmul(
        patches.reshape(-1, kernel_h * kernel_w * channels),
        rhs.reshape(-1, features),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return out.reshape(-1, out_h, out_w, features)


def max_pool(images: jax.Array, size: int) -> jax.Array:
    """Maximum over windows of `size` x `size` that do not overlap.

    A reshape and a maximum, because `reduce_window`'s gradient (select and scatter)
    is four times slower on a CPU. Where several entries of a window tie, the gradient
    is shared among them; XLA's goes to the first. Rows and columns left over are
    dropped, as with `"VALID"` padding.

    Args:
      images: `[batch, height, width, channels]`.
      size: side of the window and stride, in pixels.

    Returns:
      `[batch, height // size, width // size, channels]`.

    Raises:
      ValueError: if the image is smaller than one window.
    """
    batch, height, width, channels = images.shape
    if size < 1 or height < size or width < size:
        raise ValueError(f"size: {size} does not fit an image of {height} x {width}")
    height, width = height // size, width // size
    images = images[:, : height * size, : width * size]
    windows = images.reshape(batch, height, size, width, size, channels)
    return windows.max(axis=(2, 4))


def _check(lhs, rhs, dimension_numbers, groups) -> None:
    if groups != 1:
        raise NotImplementedError(f"feature_group_count: got {groups}, only 1 works")
    if lhs.ndim != 4 or rhs.ndim != 4:
        raise ValueError(
            "lhs, rhs: two-dimensional convolution wants arrays of rank 4, got"
            f" {lhs.shape} and {rhs.shape}"
        )
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if numbers != _NHWC:
        raise NotImplementedError(
            f"dimension_numbers: got {dimension_numbers}, only NHWC, HWIO, NHWC works"
        )
    if lhs.shape[-1] != rhs.shape[2]:
        raise ValueError(
            f"rhs: kernel for {rhs.shape[2]} channels, images have {lhs.shape[-1]}"
        )
