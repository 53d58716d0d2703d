"""Temporary memory of an outer step over an SGD step's, at two sizes of the batch.

    python benchmarks/memory.py

What XLA reserves beside the copies of the params grows with the batch: activations,
the words of dropout and how both are packed into one arena. A batch eight times as
small (one text for the transformer) tells the two apart.
"""

from __future__ import annotations

import jax
import problems
from contenders import one_per_call, sgd, whole_outer_step


def copies(problem: problems.Problem) -> tuple[float, float]:
    """Return SGD's temporary memory, and what an outer step adds, in params."""
    params_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(problem.params))
    base = one_per_call(problem, sgd()).temporary_bytes
    ours = whole_outer_step(problem).temporary_bytes
    return base / params_bytes, (ours - base) / params_bytes


def main() -> None:
    print("| model | batch | SGD, copies of the params | Entropy-SGD's on top |")
    print("|---|---|---|---|")
    for name in problems.NAMES:
        whole = problems.make(name)
        batch = jax.tree.leaves(whole.batches)[0].shape[1]
        for problem in (whole, problems.make(name, max(1, batch // 8))):
            print(
                f"| {name} | {problem.batch} | {{:.2f}} | {{:.2f}} |".format(
                    *copies(problem)
                )
            )


if __name__ == "__main__":
    main()
