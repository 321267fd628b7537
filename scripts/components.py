"""Principal components of the training images, which the linear parts of a network start from.

What surrounds a heart differs from patient to patient in more ways than a short training learns from a small cohort:
the decoder then shows less of an unseen patient than the mean image does. The first components of the same images have
most of it, and take no training.
"""

from __future__ import annotations

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from sklearn.decomposition import PCA
from torch.utils.data import DataLoader

from scripts.distributed import share_weights
from scripts.handlers import seed_everything
from scripts.networks import LinearCodes, LinearImages, VariationalAutoencoder

NOTHING = 1e-4  # of the first component's deviation: a component below it is rounding


class PrincipalComponents:
    """Set the linear parts of a network to principal components before the first epoch of a new training.

    Each component becomes a dimension of the code, in units of its standard deviation over augmented training images,
    as N(0, I) has it. Attach it behind the handler that resumes.

    Args:
        network: has ``LinearCodes`` and ``LinearImages``.
        reserved: the first so many dimensions get no component: they are to follow attributes.
        images: augmented images to take the components of, as many passes over the training as that takes.
        seed: of the run.

    Raises:
        ValueError: for fewer than two images, naming the key.
    """

    def __init__(self, network: VariationalAutoencoder, reserved: int = 0, images: int = 512, seed: int = 0) -> None:
        if images < 2:
            raise ValueError(f"component_images is {images}: expected 2 or more, or 0 for a start without components.")
        self.codes: LinearCodes = network.encoder
        self.images: LinearImages = network.decoder[0]
        self.network, self.reserved, self.count, self.seed = network, reserved, images, seed

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        """Set both linear maps, those of the first process in all processes."""
        if engine.state.epoch:  # resumed
            return
        self.set(*components(self.draw(engine.data_loader), self.network.latent_dim - self.reserved))
        share_weights(self.network)

    def draw(self, loader: DataLoader) -> torch.Tensor:
        """Augmented images at low resolution, (N, images * size * size)."""
        drawn: list[torch.Tensor] = []
        found = passes = 0
        while found < self.count:
            seed_everything(loader.dataset, self.seed, 0, passes)
            for batch in loader:
                drawn.append(self.codes.shrink(batch[Keys.IMAGE].float()).cpu())
                found += len(drawn[-1])
                if found >= self.count:
                    break
            passes += 1
        return torch.cat(drawn)[: self.count]

    @torch.no_grad()
    def set(self, mean: torch.Tensor, deviations: torch.Tensor, directions: torch.Tensor) -> None:
        """Take components as of ``components`` for the dimensions behind the reserved ones."""
        rows = slice(self.reserved, self.reserved + len(directions))
        back = directions / deviations[:, None]
        self.codes.linear.weight[rows] = (self.codes.scale * back).to(self.codes.linear.weight)
        self.codes.linear.bias[rows] = -(back @ mean).to(self.codes.linear.bias)
        self.images.linear.weight[:, rows] = (directions * deviations[:, None]).T.to(self.images.linear.weight)
        self.images.linear.bias.copy_(mean)


def components(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean (F,), standard deviations (K,) and directions (K, F) of the first principal components of rows (N, F).

    K is ``count`` or, where the rows have fewer, as many as there are.
    """
    found = PCA(min(count, *values.shape), svd_solver="full").fit(values.numpy())
    deviations = np.sqrt(found.explained_variance_)
    kept = deviations > NOTHING * deviations[0]
    return tuple(torch.from_numpy(part) for part in (found.mean_, deviations[kept], found.components_[kept]))
