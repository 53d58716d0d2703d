"""What a compiled program communicates between devices, read from its HLO."""

import math
import re
from typing import NamedTuple

_KINDS = (
    "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|"
    "collective-broadcast"
)
# An asynchronous one is a pair; its start names the operands, its done nothing new.
_COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{_KINDS})(?P<start>-start)?\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?P<how>body|condition|calls|to_apply|true_computation|false_computation|"
    r"branch_computations)=(?P<names>\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<sizes>[\d,]*)\]")
_BITS = re.compile(r"\d+")


class Collective(NamedTuple):
    """One communication of a compiled program.

    Attributes:
      kind: `all-reduce`, `all-gather`, ...
      num_bytes: size of its result on each device.
      trips: how often it runs each time the program does; 0 if that is not known.
      in_loop: whether it is in the body of a loop.
      conditional: whether it is in a branch, and may not run at all.
    """

    kind: str
    num_bytes: int
    trips: int
    in_loop: bool
    conditional: bool


def collectives(hlo: str) -> list[Collective]:
    """Reads the communication of a program.

    Args:
      hlo: `compiled.as_text()` of `jax.jit(function).lower(...).compile()`.

    Returns:
      Every collective, also those in loops and branches.

    Raises:
      ValueError: if the text has no entry computation.
    """
    lines = _by_computation(hlo)
    entry = re.search(r"^ENTRY %?([\w.\-]+) ", hlo, re.M)
    if entry is None:
        raise ValueError("hlo: has no ENTRY computation; wanted compiled.as_text()")
    found: list[Collective] = []

    def visit(name: str, trips: int, in_loop: bool, conditional: bool) -> None:
        for line in lines[name]:
            match = _COLLECTIVE.search(line)
            if match:
                kind, sizes = match["kind"], _num_bytes(match["type"])
                # The start of these has its operands in its type, beside the results.
                paired = match["start"] and kind != "all-reduce"
                size = max(sizes) if paired else sum(sizes)
                found.append(Collective(kind, size, trips, in_loop, conditional))
            known = _TRIPS.search(line)
            for call in _CALLED.finditer(line):
                loop = call["how"] in ("body", "condition")
                times = trips * (int(known[1]) if known else 0) if loop else trips
                branch = "computation" in call["how"]
                for callee in re.findall(r"[\w.\-]+", call["names"]):
                    visit(callee, times, in_loop or loop, conditional or branch)

    visit(entry[1], 1, False, False)
    return found


def _by_computation(hlo: str) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    current: list[str] = []
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = lines.setdefault(header["name"], [])
        else:
            current.append(line)
    return lines


def _num_bytes(type_: str) -> list[int]:
    found = []
    for shape in _SHAPE.finditer(type_):
        sizes = [int(size) for size in shape["sizes"].split(",") if size]
        bits = _BITS.search(shape["dtype"])
        found.append(math.prod(sizes) * (int(bits[0]) // 8 if bits else 1))
    return found
