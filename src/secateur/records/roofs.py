"""What one core of a machine reaches at most, as it was measured there."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.records.base import Jsonable

__all__ = ["Bandwidth", "Roofs"]


@dataclass(frozen=True)
class Bandwidth(Jsonable):
    """How fast one core reads from one level of its memory.

    Attributes:
        level: ``second cache``, ``last cache`` or ``memory``.
        holds: bytes that fit into it; None for memory.
        array: bytes that were read over and over.
        gbps: gigabytes (10^9) per second.
    """

    level: str
    holds: int | None
    array: int
    gbps: float


@dataclass(frozen=True)
class Roofs(Jsonable):
    """The roofs of a roofline: ``min(peak, bandwidth * intensity)``, measured on one thread.

    Attributes:
        isa: instruction set of the loops, the one that the kernels use.
        gflops: peak of float32 multiply-adds, two operations each, in 10^9 per second.
        gflops_bf16: the same of products of bf16 pairs.
        bandwidths: from the nearest level to the farthest.

    References:
        Williams, Waterman, Patterson: Roofline, 2009.
    """

    isa: str
    gflops: float
    gflops_bf16: float
    bandwidths: tuple[Bandwidth, ...]

    def level_of(self, working: int) -> Bandwidth:
        """The nearest level that holds so many bytes.

        Example:
            >>> near, far = Bandwidth("last cache", 1000, 500, 90.0), Bandwidth("memory", None, 8000, 20.0)
            >>> Roofs("avx2", 100.0, 100.0, (near, far)).level_of(2000).level
            'memory'
        """
        return next(
            (found for found in self.bandwidths if found.holds is not None and working <= found.holds),
            self.bandwidths[-1],
        )

    def at(self, intensity: float, working: int, bf16: bool = False) -> float:
        """Most operations that this core could do, in 10^9 per second.

        Args:
            intensity: operations per byte that must move.
            working: bytes of all that is used again and again: they come from the nearest level that holds them.
            bf16: of bf16 pairs.

        Example:
            >>> memory = Bandwidth("memory", None, 8000, 20.0)
            >>> roofs = Roofs("avx2", 100.0, 100.0, (memory,))
            >>> roofs.at(0.5, 2000), roofs.at(50.0, 2000)
            (10.0, 100.0)
        """
        return min(self.gflops_bf16 if bf16 else self.gflops, self.level_of(working).gbps * intensity)
