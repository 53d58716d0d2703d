"""Temperature from the noise levels that papers and codes state."""

from __future__ import annotations

from typing import Literal

from entropy_optax._arguments import check_scalar


def temperature_from_noise(
    eps: float, convention: Literal["paper", "released"] = "paper"
) -> float:
    r"""Return the temperature of a Langevin step with noise level :math:`\epsilon`.

    The noise of one inner step is :math:`\sqrt{2 \eta' T}\, \xi`. The paper writes
    :math:`\epsilon \sqrt{\eta'}\, \xi`, so :math:`T = \epsilon^2 / 2`; the released
    codes add :math:`\epsilon \sqrt{2 \eta'}\, \xi`, so :math:`T = \epsilon^2`.

    Args:
      eps: the noise level, 1e-4 in the paper's experiments.
      convention: whose noise it is, ``"paper"`` or ``"released"``.

    Returns:
      The temperature T.

    Raises:
      ValueError: if ``eps`` is negative or the convention is not known.

    Examples:
      >>> import entropy_optax as eo
      >>> print(f"{eo.temperature_from_noise(1e-4):.0e}")
      5e-09
      >>> print(f"{eo.temperature_from_noise(1e-4, 'released'):.0e}")
      1e-08
    """
    check_scalar("eps", eps)
    if convention not in ("paper", "released"):
        raise ValueError(
            f"convention must be 'paper' or 'released', got {convention!r}."
        )
    return eps**2 / 2 if convention == "paper" else eps**2
