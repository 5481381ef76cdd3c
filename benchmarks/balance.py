"""How even batches are over 8 processes, with and without ``data.balance``: ``python benchmarks/balance.py``.

A synthetic mixture of many texts and a few samples of many tiles; nothing is read, only documents are chosen, by the
loader's own functions. Tiles and tokens are the greatest process's over the mean, of each step, then the mean and the
95th percentile over the steps: 1.00 is even, 1.30 means that a step waits 30 % for its slowest process.
"""

import random
import statistics

from bluelm_lightning.data.balance import LOOKAHEAD, choose_balanced
from bluelm_lightning.data.packing import choose_rows

RANKS, STEPS, ROW, PER_TILE = 8, 200, 32768, 196


def document(rng: random.Random) -> tuple[int, int]:
    """(tokens, tiles): 60 % texts, 30 % pictures of 1 to 5 tiles, 10 % of 10 to 34 (pages, several pictures)."""
    kind = rng.random()
    tiles = 0 if kind < 0.6 else rng.randint(1, 5) if kind < 0.9 else rng.randint(10, 34)
    return min(ROW, int(rng.lognormvariate(6.5, 1.0)) + 16 + tiles * PER_TILE), tiles


def steps_of(rank: int, choose, lookahead: float) -> list[tuple[int, int, int]]:
    """(tiles, tokens, greatest age in steps) of each batch of a process."""
    rng, pending, out = random.Random(f"balance/{rank}"), [], []
    for step in range(STEPS):
        while sum(length for length, _, _ in pending) < lookahead * ROW:
            pending.append((*document(rng), step))
        rows = choose([p[0] for p in pending], [p[1] for p in pending], 1, ROW, None)
        taken = {i for row in rows for i in row}
        batch = [pending[i] for i in taken]
        out.append((sum(p[1] for p in batch), sum(p[0] for p in batch), max(step - p[2] for p in batch)))
        pending = [p for i, p in enumerate(pending) if i not in taken]
    return out


def report(name: str, choose, lookahead: float) -> None:
    ranks = [steps_of(rank, choose, lookahead) for rank in range(RANKS)]
    cells = []
    for column in (0, 1):
        uneven = sorted(
            max(values) / statistics.mean(values) for values in zip(*([s[column] for s in r] for r in ranks))
        )
        cells.append(f"{statistics.mean(uneven):5.2f}, p95 {uneven[int(0.95 * STEPS)]:5.2f}")
    padding = 1 - statistics.mean(step[1] for rank in ranks for step in rank) / ROW
    age = max(step[2] for rank in ranks for step in rank)
    print(f"{name:>26}: tiles {cells[0]}   tokens {cells[1]}   padding {padding:6.2%}   oldest waited {age} steps")


if __name__ == "__main__":
    report("balance: false", choose_rows, 2.0)
    report("false, longer lookahead", choose_rows, 2.0 * LOOKAHEAD)
    report("balance: true", choose_balanced, 2.0 * LOOKAHEAD)
    report("true, usual lookahead", choose_balanced, 2.0)
