"""Made-up attributes and codes for the tests of the metrics."""

from __future__ import annotations

import numpy as np

# of the attributes in 20 healthy hearts of ACDC, below the diagonal
HEALTHY = [[], [0.87], [0.92, 0.81], [0.78, 0.75, 0.75], [0.85, 0.82, 0.80, 0.80], [0.71, 0.76, 0.66, 0.75, 0.94]]


def hearts(subjects: int, seed: int = 0) -> np.ndarray:
    correlation = np.eye(6)
    for i, row in enumerate(HEALTHY):
        correlation[i, :i] = correlation[:i, i] = row
    return 100 + 30 * np.random.default_rng(seed).multivariate_normal(np.zeros(6), correlation, subjects)


def example(subjects: int = 240, noise: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Codes (subjects, 9) and three attributes: noisy on dimensions 0 to 2, one of them leaking into dimension 4."""
    rng = np.random.default_rng(5)
    attributes = rng.normal(size=(subjects, 3)) + rng.normal(size=(subjects, 1))
    codes = rng.normal(size=(subjects, 9))
    codes[:, :3] = attributes + noise * rng.normal(size=(subjects, 3))
    codes[:, 4] = attributes[:, 1] + 0.3 * rng.normal(size=subjects)
    return codes, attributes


def halves(codes: np.ndarray, attributes: np.ndarray) -> tuple[np.ndarray, ...]:
    half = len(codes) // 2
    return codes[:half], attributes[:half], codes[half:], attributes[half:]
