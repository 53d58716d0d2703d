"""Instruments that show whether a minimum is wide, each number with its error."""

from entropy_optax.measure._checks import MeasureError, NotConverged
from entropy_optax.measure._curvature import (
    gauss_newton_vector_product,
    hessian_vector_product,
)
from entropy_optax.measure._dense import dense_hessian, dense_spectrum
from entropy_optax.measure._density import Curve, SpectralDensity
from entropy_optax.measure._directions import (
    filter_normalized_direction,
    filter_scales,
)
from entropy_optax.measure._estimate import Estimate, estimate
from entropy_optax.measure._exact import (
    ExactLocalEntropy,
    quadratic_local_entropy,
    quadrature_local_entropy,
)
from entropy_optax.measure._figures import (
    landscape_figure,
    noise_figure,
    plane_figure,
    slice_figure,
    valleys_figure,
)
from entropy_optax.measure._geometry import in_geometry
from entropy_optax.measure._gradient_quality import (
    GradientQuality,
    InnerLoopQuality,
    gradient_quality,
)
from entropy_optax.measure._landscape import (
    local_minima,
    paper_landscape,
    smoothed_landscape,
)
from entropy_optax.measure._laplace import LaplaceLocalEntropy, laplace_local_entropy
from entropy_optax.measure._lipschitz import (
    Smoothed,
    lemma_counterexample,
    smoothed_1d,
    smoothness_1d,
)
from entropy_optax.measure._local_entropy import local_entropy
from entropy_optax.measure._local_entropy_result import (
    LocalEntropyDiagnostics,
    LocalEntropyEstimate,
)
from entropy_optax.measure._maximum import Sharpness
from entropy_optax.measure._noise import NoiseCurve, noise_curve
from entropy_optax.measure._objective import Objective, model_objective, objective
from entropy_optax.measure._path import (
    LocalEntropyLine,
    local_entropy_along_line,
)
from entropy_optax.measure._proximal import ProximalPoint, proximal_point
from entropy_optax.measure._report import Report, report
from entropy_optax.measure._report_figures import (
    local_entropy_figure,
    spectrum_figure,
)
from entropy_optax.measure._runner import ChainSettings
from entropy_optax.measure._sequential_monte_carlo import tempered_smc_local_entropy
from entropy_optax.measure._shares import Shares, share_near_zero
from entropy_optax.measure._sharpness import (
    adaptive_sharpness,
    average_sharpness,
    epsilon_sharpness,
)
from entropy_optax.measure._slices import line_between, plane_loss, slice_loss
from entropy_optax.measure._smoothness import (
    Smoothness,
    SmoothnessBounds,
    lemma_bounds,
    lemma_margin,
    quadratic_smoothness,
    smoothness_bounds,
)
from entropy_optax.measure._smoothness_net import PointSmoothness, smoothness_at
from entropy_optax.measure._spectrum import (
    ExtremeEigenvalues,
    extreme_eigenvalues,
    spectral_density,
)
from entropy_optax.measure._stability import (
    TwinRuns,
    growth_exponent,
    paired_distance,
    stability_bound,
    twin_runs,
)
from entropy_optax.measure._traces import Traces, traces
from entropy_optax.measure._valleys import (
    Share,
    descent_paths,
    settle,
    two_valleys,
    valley_shares,
)

__all__ = [
    "ChainSettings",
    "Curve",
    "Estimate",
    "ExactLocalEntropy",
    "ExtremeEigenvalues",
    "GradientQuality",
    "InnerLoopQuality",
    "LaplaceLocalEntropy",
    "LocalEntropyDiagnostics",
    "LocalEntropyEstimate",
    "LocalEntropyLine",
    "MeasureError",
    "NoiseCurve",
    "NotConverged",
    "Objective",
    "PointSmoothness",
    "ProximalPoint",
    "Report",
    "Share",
    "Shares",
    "Sharpness",
    "Smoothed",
    "Smoothness",
    "SmoothnessBounds",
    "SpectralDensity",
    "Traces",
    "TwinRuns",
    "adaptive_sharpness",
    "average_sharpness",
    "dense_hessian",
    "dense_spectrum",
    "descent_paths",
    "epsilon_sharpness",
    "estimate",
    "extreme_eigenvalues",
    "filter_normalized_direction",
    "filter_scales",
    "gauss_newton_vector_product",
    "gradient_quality",
    "growth_exponent",
    "hessian_vector_product",
    "in_geometry",
    "landscape_figure",
    "laplace_local_entropy",
    "lemma_bounds",
    "lemma_counterexample",
    "lemma_margin",
    "line_between",
    "local_entropy",
    "local_entropy_along_line",
    "local_entropy_figure",
    "local_minima",
    "model_objective",
    "noise_curve",
    "noise_figure",
    "objective",
    "paired_distance",
    "paper_landscape",
    "plane_figure",
    "plane_loss",
    "proximal_point",
    "quadratic_local_entropy",
    "quadratic_smoothness",
    "quadrature_local_entropy",
    "report",
    "settle",
    "share_near_zero",
    "slice_figure",
    "slice_loss",
    "smoothed_1d",
    "smoothed_landscape",
    "smoothness_1d",
    "smoothness_at",
    "smoothness_bounds",
    "spectral_density",
    "spectrum_figure",
    "stability_bound",
    "tempered_smc_local_entropy",
    "traces",
    "twin_runs",
    "two_valleys",
    "valley_shares",
    "valleys_figure",
]
