"""A model, not a measurement: time per gradient on 8 to 4,096 devices.

    python benchmarks/scale_model.py

A ring all-reduce of B bytes over d devices sends 2 (d - 1) / d * B through each link,
in 2 (d - 1) messages (Patarasuk and Yuan 2009). Data parallel training does that for
every gradient, Parle once in L of them. Nothing overlaps with the computation, which
takes the same time on every device.
"""

from __future__ import annotations

import json
import pathlib
from typing import NamedTuple

RECORD = pathlib.Path(__file__).parent / "results" / "cpu_kept.json"
NUM_DEVICES = (8, 64, 512, 4096)
NUM_STEPS = 25
"""L of Parle's paper."""
MODELS = ("lenet", "allcnn", "transformer")


class Link(NamedTuple):
    """What a device has to the next one of the ring.

    Attributes:
      gigabytes: per second, in each direction, as published.
      microseconds: latency of a message; an assumption.
    """

    gigabytes: float
    microseconds: float


LINKS = {
    "NVLink 4 (H100)": Link(450, 1),
    "TPU v5e, one of four links": Link(50, 1),
    "InfiniBand NDR": Link(50, 5),
    "10 Gb/s Ethernet": Link(1.25, 50),
}


def all_reduce_seconds(num_bytes: float, devices: int, link: Link) -> float:
    """Return the seconds of one ring all-reduce."""
    sent = 2 * (devices - 1) / devices * num_bytes
    messages = 2 * (devices - 1)
    return sent / (link.gigabytes * 1e9) + messages * link.microseconds * 1e-6


def slowdown(
    seconds: float, num_bytes: float, devices: int, link: Link, every: int
) -> float:
    """Return the time per gradient over that of one device.

    Args:
      seconds: of the computation of a gradient.
      num_bytes: of the params.
      devices: how many there are.
      link: between them.
      every: gradients from one all-reduce to the next.
    """
    return 1 + all_reduce_seconds(num_bytes, devices, link) / every / seconds


def measured(record: dict) -> dict[str, tuple[float, int]]:
    """Return seconds of a gradient and bytes of the params of each network."""
    return {
        row["model"]: (
            row["baseline_ms"] / row["baseline_gradients"] / 1000,
            4 * row["params"],
        )
        for row in record["rows"]
        if row["contender"] == "Entropy-SGD" and row["model"] in MODELS
    }


def lines(record: dict) -> list[str]:
    """Return the tables: the model of each network on each link."""
    out = []
    for model, (seconds, num_bytes) in measured(record).items():
        out += [
            f"**{model}**: {num_bytes / 1e6:.1f} MB of params, "
            f"{1000 * seconds:.1f} ms a gradient (two CPU cores, measured)",
            "",
            "| | " + " | ".join(f"{d:,} devices" for d in NUM_DEVICES) + " |",
            "|---" * (len(NUM_DEVICES) + 1) + "|",
        ]
        for name, link in LINKS.items():
            cells = [
                " / ".join(
                    f"{slowdown(seconds, num_bytes, d, link, every):.3g}"
                    for every in (1, NUM_STEPS)
                )
                for d in NUM_DEVICES
            ]
            out.append(f"| {name} | " + " | ".join(cells) + " |")
        out.append("")
    out += [
        "Communication for each gradient on 4,096 devices, by the same model (data"
        " parallel / Parle). A gradient that takes less time than that mostly waits.",
        "",
        "| | " + " | ".join(measured(record)) + " |",
        "|---" * (len(measured(record)) + 1) + "|",
    ]
    for name, link in LINKS.items():
        cells = []
        for _, num_bytes in measured(record).values():
            whole = 1000 * all_reduce_seconds(num_bytes, 4096, link)
            cells.append(f"{whole:.3g} / {whole / NUM_STEPS:.3g} ms")
        out.append(f"| {name} | " + " | ".join(cells) + " |")
    return out


if __name__ == "__main__":
    print("\n".join(lines(json.loads(RECORD.read_text(encoding="utf-8")))))
