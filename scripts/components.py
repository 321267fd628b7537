"""Principal components of the training images, which the linear parts of a network start from.

What surrounds a heart differs from patient to patient in more ways than a short training learns from a small cohort.
The first components of the same images have much of it, and take no training: bundle/docs/results.md has figures.
"""

from __future__ import annotations

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.networks.layers import GaussianFilter
from monai.utils.enums import CommonKeys as Keys
from torch.utils.data import DataLoader

from scripts.distributed import gather_rows, of_first_process, share_weights, sum_over_processes
from scripts.handlers import seed_everything
from scripts.networks import LinearCodes, LinearImages, VariationalAutoencoder, rim

FILL = 1 / 8  # of an image's width: standard deviation of the blur that reaches from a heart's rim to its middle
FAINT = 1e-6  # share of what is not heart below which nothing is known of it
NOTHING = 1e-4  # of an image's length: a component with a smaller deviation is rounding


class PrincipalComponents:
    """Set the linear parts of a network to principal components before the first epoch of a new training.

    Components are those of the images at low resolution. Each becomes a dimension of the code, in units of its standard
    deviation over the training images, as N(0, I) has it, and what it does to the images at full resolution is
    found by least squares. Hearts are left out of that, since what attributes move must not stand there twice. The
    map to images keeps it and does not learn: with a weight for each pixel and code, it would fit the noise of
    a small cohort. Attach it behind the handler that resumes.

    Args:
        network: has ``LinearCodes`` and ``LinearImages``, whose weights need no gradient from here on.
        reserved: the first so many dimensions get no component: they are to follow attributes.
        count: images to take the components of, augmented as the training augments, in as many passes over the training
            subjects as that takes; shared by the processes, each of which holds its share of them.
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
        self.to_images.linear.requires_grad_(False)

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
        rows, surroundings = self.draw(engine.data_loader)
        device = self.to_codes.linear.weight.device  # which processes talk through
        everyone = gather_rows(rows.to(device)).cpu()
        if not everyone.isfinite().all():
            raise ValueError("training images have values that are not finite: look for such scans, or 'run prepare'.")
        found = components(everyone, max(0, self.network.latent_dim - self.reserved))
        # Another machine's arithmetic may find another sign of a component, or one less.
        mean, directions = (of_first_process(values.to(device)).cpu() for values in found)
        # Codes of components are uncorrelated and of unit variance: their least squares are plain means.
        codes = torch.cat([(rows - mean) @ directions.T, rows.new_ones(len(rows), 1)], dim=1)
        effects = sum_over_processes((codes.T @ surroundings.flatten(1)).to(device)) / len(everyone)
        self.assign(mean, directions, effects[:-1], effects[-1])
        share_weights(self.network)

    def draw(self, loader: DataLoader) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's share of the images, at low resolution (N, features), and without hearts (N, images, H, W)."""
        share, count = -(-self.count // idist.get_world_size()), self.to_codes.images
        rows: list[torch.Tensor] = []
        surroundings = torch.empty(0)
        found = passes = 0
        while found < share:
            seed_everything(loader.dataset, self.seed, 0, passes)
            for batch in loader:
                values = batch[Keys.IMAGE][: share - found].float()
                if not found:
                    surroundings = torch.empty(share, count, *values.shape[2:])
                rows.append(self.to_codes.shrink(values).cpu())
                surroundings[found : found + len(values)] = without_hearts(values, count)
                found += len(values)
                if found == share:
                    break
            passes += 1
        return torch.cat(rows), surroundings

    @torch.no_grad()
    def assign(
        self, mean_row: torch.Tensor, directions: torch.Tensor, effects: torch.Tensor, mean_image: torch.Tensor
    ) -> None:
        """Take components for the dimensions behind the reserved ones.

        In place: optimizers and frozen twins share the memory of the weights.

        Args:
            mean_row, directions: as of ``components``, of images at low resolution.
            effects: what one unit of each code adds to an image, (K, pixels).
            mean_image: (pixels,).
        """
        dimensions = slice(self.reserved, self.reserved + len(directions))
        codes, images = self.to_codes.linear, self.to_images.linear
        # At first, what the convolutions add is noise, and more of it than components leave to be learned.
        self.to_codes.quiet(dimensions)
        self.to_images.quiet()
        codes.weight[dimensions] = (self.to_codes.scale * directions).to(codes.weight)
        codes.bias[dimensions] = -(directions @ mean_row).to(codes.bias)
        images.weight[:, dimensions] = effects.T.to(images.weight)
        images.bias.copy_(mean_image)


def without_hearts(values: torch.Tensor, images: int) -> torch.Tensor:
    """Images (B, images, H, W) with what is around their hearts in the place of hearts, as smooth as that needs.

    Args:
        values: channels (B, C, H, W), of which the first are images, and the others three maps per slice: without these
            the images stay as they are.
        images: number of channels that are images.
    """
    found, maps = values[:, :images], values[:, images:]
    if not maps.shape[1]:
        return found
    shares = maps.unflatten(1, (images, 3)).sum(2).clamp(0, 1)  # resampled, they may add up to a little more
    hearts = rim()(shares)
    blur = GaussianFilter(2, FILL * found.shape[-1])
    around = blur(found * (1 - hearts)) / blur(1 - hearts).clamp(min=FAINT)
    return (1 - hearts) * found + hearts * around


def components(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (F,) of rows (N, F) and the directions (K, F) of their first principal components.

    A row less the mean, times a direction, has unit variance over the rows. K is ``count`` or, where the rows have
    fewer components, as many as there are.
    """
    mean = values.mean(0)
    _, lengths, directions = torch.linalg.svd(values - mean, full_matrices=False)
    deviations = lengths / len(values) ** 0.5
    kept = min(count, int((deviations > NOTHING * values.norm(dim=1).mean()).sum()))
    return mean, directions[:kept] / deviations[:kept, None]
