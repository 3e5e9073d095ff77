"""Work on a matrix a few rows at a time, on all cores or on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

CHUNK = 1 << 17
"""Weights taken at once on a CPU: few enough that the temporaries stay in the cache."""

GPU_CHUNK = 1 << 24


def row_chunks(
    work: Callable[[int, torch.Tensor], None], x: torch.Tensor, device: torch.device | None, by_column: bool = False
) -> None:
    """Call `work` with the number of the first row and the rows, on the device, until all rows were taken.

    On a CPU chunks run side by side, one torch thread each: splitting one small operation among cores costs more.

    Args:
        work: takes rows [n, columns]; called from several threads.
        x: [rows, columns].
        device: where the rows are handed over; None takes the GPU when there is one.
        by_column: the work goes from column to column, which costs as much for few rows as for many: each thread, or
            the GPU, gets all its rows at once.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    if by_column:
        height = max(1, -(-x.shape[0] // (threads if device.type == "cpu" else 1)))
    else:
        height = max(1, (CHUNK if device.type == "cpu" else GPU_CHUNK) // max(1, x.shape[1]))
    starts = range(0, x.shape[0], height)

    def take(start: int) -> None:
        work(start, x[start : start + height].to(device))

    if device.type != "cpu" or threads == 1 or len(starts) == 1:
        for start in starts:
            take(start)
        return
    try:
        with ThreadPoolExecutor(
            min(threads, len(os.sched_getaffinity(0))), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            list(pool.map(take, starts))
    finally:
        torch.set_num_threads(threads)
