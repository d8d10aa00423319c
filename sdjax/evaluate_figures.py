"""Figures from numbers alone: distances, shares, and how one stands beside another."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

Pictures = UInt8[np.ndarray, "images height width 3"]
Features = Float[np.ndarray, "images dim"]


def fit_style_probe(features: Features, styles: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """Ridge regression from features (and a constant) to one-hot styles: [dim + 1, styles]."""
    wanted = np.array([[style == word for word in words] for style in styles], np.float64)
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    return np.linalg.solve(x.T @ x + 1e-3 * np.eye(x.shape[1]), x.T @ wanted)


def probe_accuracy(
    probe: np.ndarray, features: Features, styles: Sequence[str], words: Sequence[str]
) -> float:
    """Share of pictures whose style the probe names."""
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    named = [words[i] for i in (x @ probe).argmax(1)]
    return float(np.mean([a == b for a, b in zip(named, styles, strict=True)]))


def frechet_distance(a: Features, b: Features) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500).

    Biased upwards for few pictures: compare only figures of equally many.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # The eigenvalues of root cov_b root are those of cov_a cov_b, and it is symmetric.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def psnr(a: Pictures, b: Pictures) -> Float[np.ndarray, " images"]:
    """10 log10(255^2 / mean squared error) of each picture, in dB."""
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-3))


def compared(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """A figure of pictures that were drawn, that of real ones, and the one by the other.

    A third value is that of copies.
    """
    generated, real, *copied = values
    ratio = round(generated / real, 3) if real else float(generated > 0)
    found = {"generated": round(generated, digits), "real": round(real, digits), "ratio": ratio}
    if copied:
        found["copied"] = round(copied[0], digits)
    return found
