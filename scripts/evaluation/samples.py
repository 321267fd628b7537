"""Images drawn from a model's prior, judged beside training and test images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from scripts.evaluation.realism import frechet_distance, generate, kernel_distance, memorization
from scripts.networks import VariationalAutoencoder


class SamplePairs(NamedTuple):
    """Generated images beside the training images nearest to them.

    Args:
        samples, nearest: (pairs, C, H, W), the most suspicious pair first.
        distances: in feature space, (pairs,).
    """

    samples: torch.Tensor
    nearest: torch.Tensor
    distances: np.ndarray


class GeneratedSamples:
    """Draw images and judge how real they are, and whether they are copies.

    Args:
        network: the model.
        features: images (B, C, H, W) to features (B, F).
        dataset: training images in the order of their features, for pictures.
        count: number of images to draw.
        batch_size: how many at a time.
        seed: of the draw.
        device: of network and features.
        shown: number of pairs in the picture.
    """

    def __init__(
        self,
        network: VariationalAutoencoder,
        features: nn.Module,
        dataset: Sequence[Mapping[str, Any]],
        count: int,
        batch_size: int,
        seed: int,
        device: str | torch.device,
        shown: int = 8,
    ) -> None:
        self.network, self.features, self.dataset = network, features, dataset
        self.count, self.batch_size, self.seed, self.device, self.shown = count, batch_size, seed, device, shown

    def judge(self, training: np.ndarray, test: np.ndarray) -> tuple[dict[str, dict], SamplePairs]:
        """Measure the distance of generated images from test images, and their likeness to training images.

        Args:
            training, test: features (subjects, F).

        Returns:
            ``kid`` and ``frechet`` with their references, the same distances of training images, and ``memorization``;
            and the most suspicious pairs.
        """
        generated = torch.cat([self.features(images).double().cpu() for images in self.images()])
        copies = memorization(training, test, generated.numpy())
        order, nearest, distances = (copies.pop(key)[: self.shown] for key in ("generated", "train", "distance"))
        images = self.pick(order.tolist())
        scans = [torch.as_tensor(self.dataset[int(row)]["image"]) for row in nearest]
        pairs = SamplePairs(images, torch.stack(scans) if scans else images, distances)
        # The Fréchet distance falls with the number of images: it and its reference are taken of equally many.
        count = min(self.count, len(training))
        alike = np.random.default_rng(self.seed).permutation(training)[:count]
        return {
            "kid": kernel_distance(test, generated.numpy(), self.seed),
            "kid_reference": kernel_distance(test, training, self.seed),
            "frechet": frechet_distance(test, generated.numpy()[:count], self.seed),
            "frechet_reference": frechet_distance(test, alike, self.seed),
            "memorization": copies,
        }, pairs

    def images(self) -> Iterator[torch.Tensor]:
        """Batches of images, on the device: the same whenever they are asked for."""
        return generate(self.network, self.count, self.batch_size, self.seed, self.device)

    def pick(self, rows: Sequence[int]) -> torch.Tensor:
        """Some of the images, on the CPU; drawn again, since all those of a whole heart would fill the memory."""
        found, first = {}, 0
        for images in self.images():
            found |= {row: images[row - first].cpu() for row in rows if 0 <= row - first < len(images)}
            first += len(images)
        return torch.stack([found[row] for row in rows]) if rows else images[:0].cpu()
