"""Which mixtures the proxies are trained on: first spread over the simplex, later near the best known.

Our choice: the first mixture is uniform; each further one of the first round is the candidate that lies furthest, in
log shares, from all chosen before. A larger number only adds mixtures of its round, so that finished proxies keep their
use; but those near the best known move when the first round grows.
"""

from __future__ import annotations

import numpy as np

from bluelm_lightning.errors import ConfigError

_CANDIDATES = 2000
_NEARNESS = 25.0  # concentration of the Dirichlet draws around the best: a share of 0.3 moves by about 0.09


def spread(count: int, sources: int, smallest: float, seed: int = 0) -> np.ndarray:
    """Mixtures spread over all that give each source at least ``smallest``; the first is uniform.

    Returns:
        float[count, sources]; rows sum to 1.

    Raises:
        ConfigError: fewer than two sources or one mixture, or ``smallest`` leaves nothing to vary.
    """
    if sources < 2 or count < 1:
        raise ConfigError(f"{sources} sources and {count} mixtures; a mixture needs two sources or more", "stage")
    if not 0 < smallest < 1 / sources:
        raise ConfigError(f"{smallest} is not between 0 and 1/{sources}; lower it", "smallest")
    drawn = np.random.default_rng((seed, 0)).dirichlet(np.ones(sources), _CANDIDATES)
    candidates = smallest + (1 - sources * smallest) * drawn
    chosen = [np.full(sources, 1 / sources)]
    nearest = np.full(_CANDIDATES, np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.linalg.norm(np.log(candidates) - np.log(chosen[-1]), axis=1))
        chosen.append(candidates[int(nearest.argmax())])
    return np.array([exact(row) for row in chosen])


def near(best: np.ndarray, count: int, smallest: float, seed: int = 0) -> np.ndarray:
    """float[count, sources]: mixtures drawn around ``best`` float[sources], none below ``smallest``."""
    rows = [np.random.default_rng((seed, 1, number)).dirichlet(_NEARNESS * best + 0.5) for number in range(count)]
    kept = smallest + (1 - len(best) * smallest) * np.array(rows).reshape(count, len(best))
    return np.array([exact(row) for row in kept]).reshape(count, len(best))


def exact(shares: np.ndarray) -> np.ndarray:
    """Shares in ten-thousandths that sum to 1: what a YAML, a name and a report all can say."""
    parts = np.floor(np.asarray(shares) / np.sum(shares) * 10_000)
    parts[int(np.argmax(parts))] += 10_000 - parts.sum()
    return parts / 10_000
