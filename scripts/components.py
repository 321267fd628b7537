"""Principal components of the training images, which the linear parts of a network start from.

What surrounds a heart differs from patient to patient in more ways than a short training learns from a small cohort.
The first components of the same images have much of it, and take no training: bundle/docs/results.md has figures.
"""

from __future__ import annotations

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from torch.utils.data import DataLoader

from scripts.distributed import gather_rows, share_weights
from scripts.handlers import seed_everything
from scripts.networks import LinearCodes, LinearImages, VariationalAutoencoder

NOTHING = 1e-4  # of an image's length: a component with a smaller deviation is rounding


class PrincipalComponents:
    """Set the linear parts of a network to principal components before the first epoch of a new training.

    Each component becomes a dimension of the code, in units of its standard deviation over the training images, as
    N(0, I) has it. Attach it behind the handler that resumes.

    Args:
        network: has ``LinearCodes`` and ``LinearImages``.
        reserved: the first so many dimensions get no component: they are to follow attributes.
        count: images to take the components of, augmented as the training augments; those of all processes together,
            in as many passes over the training subjects as that takes.
        seed: of the run.

    Raises:
        ValueError: for a network without linear parts, or fewer than two images, naming the key.
    """

    def __init__(self, network: VariationalAutoencoder, reserved: int = 0, count: int = 512, seed: int = 0) -> None:
        if count < 2:
            raise ValueError(f"component_images is {count}: expected 2 or more, or 0 for a start without components.")
        if not isinstance(network.encoder, LinearCodes):
            raise ValueError("principal components need a network with linear parts: set --linear_size.")
        self.network, self.reserved, self.count, self.seed = network, reserved, count, seed
        self.to_codes: LinearCodes = network.encoder
        self.to_images: LinearImages = network.decoder[0]

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        """Set both linear maps, alike in all processes.

        Raises:
            ValueError: for images with values that are no numbers.
        """
        if engine.state.epoch:  # resumed
            return
        images = gather_rows(self.draw(engine.data_loader))[: self.count].cpu()
        if not images.isfinite().all():
            raise ValueError("training images have values that are not finite: look for such scans, or 'run prepare'.")
        self.assign(*components(images, max(0, self.network.latent_dim - self.reserved)))
        share_weights(self.network)

    def draw(self, loader: DataLoader) -> torch.Tensor:
        """This process's share of the images, at low resolution and on the network's device, (N, features)."""
        share = -(-self.count // idist.get_world_size())
        device = self.to_codes.linear.weight.device
        drawn: list[torch.Tensor] = []
        found = passes = 0
        while found < share:
            seed_everything(loader.dataset, self.seed, 0, passes)
            for batch in loader:
                drawn.append(self.to_codes.shrink(batch[Keys.IMAGE].to(device).float()))
                found += len(drawn[-1])
                if found >= share:
                    break
            passes += 1
        return torch.cat(drawn)[:share]

    @torch.no_grad()
    def assign(self, mean: torch.Tensor, deviations: torch.Tensor, directions: torch.Tensor) -> None:
        """Take components as of ``components`` for the dimensions behind the reserved ones.

        In place: optimizers and frozen twins share the memory of the weights.
        """
        rows = slice(self.reserved, self.reserved + len(directions))
        back = directions / deviations[:, None]
        codes, images = self.to_codes.linear, self.to_images.linear
        codes.weight[rows] = (self.to_codes.scale * back).to(codes.weight)
        codes.bias[rows] = -(back @ mean).to(codes.bias)
        images.weight[:, rows] = (directions * deviations[:, None]).T.to(images.weight)
        images.bias.copy_(mean)


def components(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean (F,), standard deviations (K,) and directions (K, F) of the first principal components of rows (N, F).

    K is ``count`` or, where the rows have fewer, as many as there are.
    """
    mean = values.mean(0)
    _, lengths, directions = torch.linalg.svd(values - mean, full_matrices=False)
    deviations = lengths / (len(values) - 1) ** 0.5
    kept = min(count, int((deviations > NOTHING * values.norm(dim=1).mean()).sum()))
    return mean, deviations[:kept], directions[:kept]
