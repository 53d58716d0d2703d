"""Page faults of a gradient: python benchmarks/page_faults.py

XLA's CPU backend takes its temporary memory from `malloc` at each call and frees it at
the end. What is large goes back to the system, and comes again as pages which the
kernel clears at the first touch of each. Run it under the settings of `make bench-kept`
and there are none.
"""

from __future__ import annotations

import resource
import statistics
import time

import problems
from contenders import Contender, one_per_call, sgd, whole_outer_step

ROUNDS = 5


def measured(step: Contender) -> tuple[float, float]:
    """Return the milliseconds and the page faults of a gradient, medians of rounds."""
    step.run()
    times, faults = [], []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        step.run()
        times.append(1e3 * (time.perf_counter() - start) / step.num_gradients)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        faults.append((after - before) / step.num_gradients)
    return statistics.median(times), statistics.median(faults)


def main() -> None:
    print("| model | SGD, ms | page faults | Entropy-SGD, ms | page faults |")
    print("|---|---|---|---|---|")
    for name in problems.NAMES:
        problem = problems.make(name)
        cells = (
            f"{milliseconds:.1f} | {faults:,.0f}"
            for milliseconds, faults in map(
                measured,
                (one_per_call(problem, sgd(), calls=5), whole_outer_step(problem)),
            )
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
