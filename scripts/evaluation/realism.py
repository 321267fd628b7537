"""Realism of generated images: pure functions on their features.

``kernel_distance`` and ``frechet_distance`` ask whether generated images are distributed as real ones are,
``memorization`` whether they are mere copies of the training images, which both distances would reward. A feature is
any vector that describes an image, such as those of ``scripts.perceptual.PooledFeatures``, one row per subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from monai.networks.utils import eval_mode
from scipy import stats
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from scripts.metrics.preconditions import LEAST_SUBJECTS
from scripts.metrics.resampling import jackknife, jackknife_interval, summary, undefined
from scripts.networks import VariationalAutoencoder

CLOSEST = 0.05  # share of the test images that sets how near to a training image is suspicious


def generate(
    network: VariationalAutoencoder, count: int, batch_size: int, seed: int, device: str | torch.device
) -> Iterator[torch.Tensor]:
    """Decode codes drawn from the prior N(0, I), a batch at a time.

    The codes depend on the seed only: not on the batch size, nor on the device. No global random state is read or
    changed. The network decodes in evaluation mode, without gradient, and is in its own mode whenever a batch is out.

    Args:
        network: on ``device``.
        count: number of images.
        batch_size: images per batch; the last batch may hold fewer.
        seed: of the codes.
        device: to decode on.

    Yields:
        Images (B, C, H, W) on ``device``, as decoded: nominally in [0, 1], not clamped.
    """
    codes = torch.randn(count, network.latent_dim, generator=torch.Generator().manual_seed(seed))
    for batch in codes.split(batch_size):
        with eval_mode(network):
            images = network.decode(batch.to(device))
        yield images


def kernel_distance(real: Sequence, generated: Sequence, seed: int = 0) -> dict:
    """Kernel distance (KID) of Bińkowski et al. (2018): the squared maximum mean discrepancy of two sets of features.

    With k(x, y) = (x·y / F + 1)³, x, x' different real images and y, y' different generated ones:

        KID = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

    It is 0 on average when both sets come from one distribution, whatever their numbers, and so may be negative.

    The interval holds 95% and is of the images: it says nothing of another training run. It comes from a delete-group
    jackknife with 10 groups (Student's t), each leaving out a tenth of both sets. A bootstrap would be wrong here: an
    image drawn twice counts as two different ones that agree, which raises the means within a set and so the value.
    For sets of one distribution the jackknife's interval is too wide, by about half, which errs on the safe side.

    Pitfalls: the value has the features' own scale, so that it compares with values of the same trunk, layers and
    images only, and never with a published KID, which is of an Inception network. What makes it readable is a
    reference row: the same distance of training features from test features, which is the value of a perfect
    generator. The spread over random subsets that some libraries print is not an interval of the value.

    Args:
        real: (N, F), one row per subject.
        generated: (M, F).
        seed: of the groups.

    Returns:
        ``value``, ``low``, ``high``, and the numbers that they rest on: ``n_real`` N, ``n_generated`` M, ``n_features``
        F. With fewer than 10 images of a kind, or features that are not finite, the value is NaN, and ``undefined``
        gives the reason in words.

    Raises:
        ValueError: if the two are not tables of the same features.
    """
    return _distance(_kernel_statistic, real, generated, seed)


def frechet_distance(real: Sequence, generated: Sequence, seed: int = 0) -> dict:
    """Fréchet distance (FID) of Heusel et al. (2017): between normal distributions fitted to two sets of features.

    With means m, n and covariances A, B of the real and generated features:

        FID = |m - n|² + tr A + tr B - 2 tr (A B)^½

    The numbers of images and features may be any: the last trace is computed without the two covariances.

    The interval holds 95%, by the jackknife of ``kernel_distance``; in a bootstrap the repeated images would lower the
    number of distinct ones and so raise the value. It is the interval of this distance at these numbers of images, and
    not of the distance that infinitely many would have.

    Pitfalls: the fewer the images, the larger the value, also between sets of one distribution, and no interval tells.
    With fewer images than features the covariances are rank-deficient, and this bias may be most of the value.
    So it compares with values at the same numbers of images only. The reference row, the same distance of training
    features from test features, has that bias too: give it as many training images as there are generated ones. Where
    the two rows and KID disagree, believe KID, which has no bias. As with KID, values of other trunks do not compare.

    Args:
        real: (N, F), one row per subject.
        generated: (M, F).
        seed: of the groups.

    Returns:
        As ``kernel_distance``. Where ``n_real`` or ``n_generated`` is not well above ``n_features``, mind the pitfalls.

    Raises:
        ValueError: if the two are not tables of the same features.
    """
    return _distance(_frechet_statistic, real, generated, seed)


def memorization(train: Sequence, test: Sequence, generated: Sequence) -> dict:
    """Are generated images nearer to training images than images of unseen subjects are?

    Each image has its distance to the nearest training image (Euclidean, in feature space). An image is suspicious when
    it is nearer than the k-th nearest of the T test images, k being 5% of T + 1, rounded down but at least 1. Generated
    images that are distributed as the test images are have an expected suspicious share of k / (T + 1), exactly; a
    decoder that gives back training images has 1.

    The interval holds 95% (Clopper and Pearson) and is of the generated images, for these test images. How nearly the
    test images fix the 5% is in ``chance``: the probability of so large a share or a larger one if test and generated
    images had one distribution. It is exact (beta-binomial), and with few test subjects hardly ever small.

    Pitfalls: a large share is a suspicion and no proof. Images that vary too little, about a mean heart, are nearer to
    everything and get one without any copy: look at the pictures of the first pairs. A small share clears a decoder of
    sharp images only: one that blurs is far from all real images, with copies too, and ``median_generated`` is well
    above ``median_test``. Then give the features of the reconstructions of training and test images as ``train``
    and ``test``, which are blurred alike. A share near the expected one does not exclude single copies, which are among
    the first pairs. Copies that are moved, turned or brightened are found as far as the features do not see the change.

    Args:
        train: (N, F), features of the training images.
        test: (T, F), those of the test images, of other subjects.
        generated: (M, F).

    Returns:
        ``value``, ``low``, ``high`` of the suspicious share, ``expected``, ``chance``; the medians of the distance,
        ``median_generated`` and ``median_test``; and for a picture three arrays (M,), the most suspicious pair first:
        ``generated`` and ``train``, the rows of the pair, and its ``distance``. With fewer than 10 images of a kind, or
        features that are not finite, the numbers are NaN, the arrays are empty, and ``undefined`` gives the reason.

    Raises:
        ValueError: if the three are not tables of the same features.
    """
    sets = _tables(training=train, test=test, generated=generated)
    if reason := _obstacle(sets):
        unknown = dict.fromkeys(("expected", "chance", "median_generated", "median_test"), float("nan"))
        nothing = {key: np.array([], int) for key in ("generated", "train")} | {"distance": np.array([])}
        return undefined(reason) | unknown | nothing
    neighbors = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(sets["training"])
    test_distance = neighbors.kneighbors(sets["test"])[0][:, 0]
    distance, nearest = (array[:, 0] for array in neighbors.kneighbors(sets["generated"]))
    order = np.argsort(distance, kind="stable")
    return _suspicious(test_distance, distance) | {
        "median_generated": float(np.median(distance)),
        "median_test": float(np.median(test_distance)),
        "generated": order,
        "train": nearest[order],
        "distance": distance[order],
    }


def _suspicious(test: np.ndarray, generated: np.ndarray) -> dict:
    """The share of generated distances below the k-th smallest test distance, and what to expect of it."""
    # An order statistic and not a quantile between two of them: only then are share and chance free of any assumption.
    rank = max(1, int(CLOSEST * (len(test) + 1)))
    count = int((generated < np.sort(test)[rank - 1]).sum())
    interval = stats.binomtest(count, len(generated)).proportion_ci(0.95)
    return {
        "value": count / len(generated),
        "low": float(interval.low),
        "high": float(interval.high),
        "expected": rank / (len(test) + 1),
        "chance": float(stats.betabinom.sf(count - 1, len(generated), rank, len(test) + 1 - rank)),
    }


# Distances: each a function of the rows to take, so that the jackknife computes the kernel only once


def _distance(statistic: Callable, real: Sequence, generated: Sequence, seed: int) -> dict:
    sets = _tables(real=real, generated=generated)
    numbers = {f"n_{which}": len(table) for which, table in sets.items()} | {"n_features": sets["real"].shape[1]}
    if reason := _obstacle(sets):
        return undefined(reason) | numbers
    of_rows = statistic(sets["real"], sets["generated"])
    value, replicates = jackknife(lambda *rows: np.array([of_rows(*rows)]), *map(len, sets.values()), seed=seed)
    return summary(value, replicates, jackknife_interval) | numbers


def _kernel_statistic(real: np.ndarray, generated: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    kernel = partial(polynomial_kernel, degree=3, gamma=1 / real.shape[1], coef0=1)
    among_real, among_generated, between = kernel(real), kernel(generated), kernel(real, generated)

    def of_rows(rows: np.ndarray, others: np.ndarray) -> float:
        within_real = _mean_of_pairs(among_real[np.ix_(rows, rows)])
        within_generated = _mean_of_pairs(among_generated[np.ix_(others, others)])
        return within_real + within_generated - 2 * between[np.ix_(rows, others)].mean()

    return of_rows


def _mean_of_pairs(kernel: np.ndarray) -> float:
    """Mean over pairs of different images: the diagonal, of an image with itself, would bias the distance."""
    return (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))


def _frechet_statistic(real: np.ndarray, generated: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    def of_rows(rows: np.ndarray, others: np.ndarray) -> float:
        x, y = real[rows], generated[others]
        means = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
        return means + x.var(axis=0, ddof=1).sum() + y.var(axis=0, ddof=1).sum() - 2 * _cross_term(x, y)

    return of_rows


def _cross_term(x: np.ndarray, y: np.ndarray) -> float:
    """tr (A B)^½ with A and B the covariances of x and y.

    For any R, S with A = RᵀR and B = SᵀS, the square roots of the eigenvalues of A B are the singular values of R Sᵀ.
    That matrix is no larger than the two sets are, and no root is taken of a singular one: the usual ``sqrtm`` of A B
    is slow with many features, and inaccurate with few images.
    """
    return np.linalg.norm(_factor(x) @ _factor(y).T, "nuc")


def _factor(features: np.ndarray) -> np.ndarray:
    """R with RᵀR the covariance, of no more rows than there are images or features."""
    centered = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(centered, mode="r") if len(features) > features.shape[1] else centered


# What all of them expect


def _tables(**features: Sequence) -> dict[str, np.ndarray]:
    # In double precision: all three subtract large numbers that nearly agree.
    tables = {which: np.asarray(table, dtype=float) for which, table in features.items()}
    shapes = {which: table.shape for which, table in tables.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[1] for shape in shapes.values()}) > 1:
        raise ValueError(f"The features have shapes {shapes}: give (images, features) with the same features in each.")
    return tables


def _obstacle(tables: dict[str, np.ndarray]) -> str:
    """Why nothing can be said about these features; empty if something can."""
    for which, table in tables.items():
        if len(table) < LEAST_SUBJECTS:
            return f"there are {len(table)} {which} images, of at least {LEAST_SUBJECTS}"
        if not np.isfinite(table).all():
            return f"features of {which} images are not finite"
    return ""
