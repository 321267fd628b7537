"""Encoder, decoder and variational autoencoder, from MONAI blocks.

The residual architecture is that of Soft-IntroVAE (Daniel & Tamar, CVPR 2021), which the paper uses with channels
64-128-256-512-512 and 128 dimensions. The plain one follows the public code of Attri-VAE (Cetin et al. 2023), in two
dimensions instead of three. Any method can train either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution, UnetResBlock, UpSample
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint_sequential

ACTIVATION = ("leakyrelu", {"negative_slope": 0.2, "inplace": True})
BLUR = 8  # pixels: of an image blurred so, no wall can be read
RIM = 3  # pixels around a heart that are drawn with it: a blurred image has a halo there, which looks like more heart


class Blocks(nn.Sequential):
    """Blocks one after the other, which can keep their inputs only and compute the rest again for the gradient.

    The last block is not computed again, since its gradient comes first. Gradients stay as they are; running statistics
    of batch normalization see each batch twice.
    """

    checkpointing = False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run all blocks."""
        if not torch.jit.is_scripting() and self.checkpointing and torch.is_grad_enabled():
            return checkpoint_sequential(list(self), len(self), inputs, use_reentrant=False, preserve_rng_state=False)
        for block in self:
            inputs = block(inputs)
        return inputs


class Encoder(Blocks):
    """Image to the parameters of q(z|x): a 5x5 stem, then residual blocks with average pooling.

    Args:
        in_channels: channels of the image.
        spatial_size: height and width of the image; divisible by 2 to the number of ``channels``.
        channels: feature channels of the stem and of each following block.
        latent_dim: dimensions of z.
        norm: MONAI normalization, by name or (name, arguments).
    """

    def __init__(
        self,
        in_channels: int,
        spatial_size: Sequence[int],
        channels: Sequence[int],
        latent_dim: int,
        norm: str | tuple,
    ) -> None:
        stem = Convolution(2, in_channels, channels[0], kernel_size=5, act=ACTIVATION, norm=norm, bias=False)
        layers: list[nn.Module] = [stem, nn.AvgPool2d(2)]
        for narrow, wide in pairwise(channels):
            layers += [residual_block(narrow, wide, norm), nn.AvgPool2d(2)]
        layers += [residual_block(channels[-1], channels[-1], norm), nn.Flatten()]
        features = channels[-1] * coarse_size(spatial_size, channels).numel()
        super().__init__(*layers, nn.Linear(features, 2 * latent_dim))


class Decoder(Blocks):
    """z to image: residual blocks with upsampling, then a 5x5 convolution without activation.

    Args:
        out_channels: channels of the image.
        spatial_size, channels, latent_dim, norm: as those of the encoder that it mirrors.
        interp_mode: of the upsampling, ``nearest`` as in Soft-IntroVAE, or ``bilinear``: after nearest neighbors,
            convolutions are long to learn not to draw stripes of two and four pixels.
    """

    def __init__(
        self,
        out_channels: int,
        spatial_size: Sequence[int],
        channels: Sequence[int],
        latent_dim: int,
        norm: str | tuple,
        interp_mode: str = "nearest",
    ) -> None:
        coarse = coarse_size(spatial_size, channels)
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, channels[-1] * coarse.numel()),
            nn.ReLU(),
            nn.Unflatten(1, (channels[-1], *coarse)),
        ]
        width = channels[-1]
        for narrow in reversed(channels):
            upsample = UpSample(
                2, narrow, narrow, 2, mode="nontrainable", pre_conv=None, interp_mode=interp_mode, align_corners=None
            )
            layers += [residual_block(width, narrow, norm), upsample]
            width = narrow
        layers += [
            residual_block(width, width, norm),
            Convolution(2, width, out_channels, kernel_size=5, conv_only=True),
        ]
        super().__init__(*layers)


class PlainEncoder(Blocks):
    """Image to the parameters of q(z|x): 3x3 convolutions of stride 2, then two dense layers.

    Args:
        in_channels, spatial_size, channels, latent_dim, norm: as those of ``Encoder``.
    """

    def __init__(
        self,
        in_channels: int,
        spatial_size: Sequence[int],
        channels: Sequence[int],
        latent_dim: int,
        norm: str | tuple,
    ) -> None:
        features = channels[-1] * coarse_size(spatial_size, channels).numel()
        layers = [
            Convolution(2, before, after, strides=2, act="relu", norm=norm)
            for before, after in pairwise((in_channels, *channels))
        ]
        dense = [nn.Linear(features, 2 * latent_dim), nn.ReLU(), nn.Linear(2 * latent_dim, 2 * latent_dim)]
        super().__init__(*layers, nn.Flatten(), *dense)


class PlainDecoder(Blocks):
    """z to image: a dense layer, 3x3 transposed convolutions of stride 2, then a 3x3 convolution without activation.

    Args:
        out_channels, spatial_size, channels, latent_dim, norm: as those of ``Decoder``.
    """

    def __init__(
        self,
        out_channels: int,
        spatial_size: Sequence[int],
        channels: Sequence[int],
        latent_dim: int,
        norm: str | tuple,
    ) -> None:
        coarse = coarse_size(spatial_size, channels)
        dense = [nn.Linear(latent_dim, channels[-1] * coarse.numel()), nn.ReLU()]
        widths = (*reversed(channels), channels[0])
        layers = [
            Convolution(2, before, after, strides=2, act="relu", norm=norm, is_transposed=True)
            for before, after in pairwise(widths)
        ]
        to_image = Convolution(2, channels[0], out_channels, conv_only=True)
        super().__init__(*dense, nn.Unflatten(1, (channels[-1], *coarse)), *layers, to_image)


class LinearCodes(nn.Module):
    """Add to the mean codes of an encoder a linear map of the images at low resolution, the way into ``LinearImages``.

    The first convolution mixes all slices of a stack into a few features, in which single slices are hard to find.

    Args:
        encoder: channels (B, C, H, W), of which the first are images, to the parameters of q(z|x), (B, 2D), by blocks
            whose last gives them.
        images: number of channels that are images; the others are not looked at.
        latent_dim: D.
        size: height and width that the images are shrunk to, in pixels.
    """

    def __init__(self, encoder: Blocks, images: int, latent_dim: int, size: int) -> None:
        super().__init__()
        self.encoder, self.images, self.size = encoder, images, size
        self.linear = zero_linear(images * size**2, latent_dim)
        # Adam moves each weight alike, and here thousands of them add up in one code.
        self.scale = self.linear.in_features**0.5

    def shrink(self, values: torch.Tensor) -> torch.Tensor:
        """The images among channels (B, C, H, W) at low resolution, (B, images * size * size)."""
        return functional.adaptive_avg_pool2d(values[:, : self.images], self.size).flatten(1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Channels (B, C, H, W) to mean and log-variance of q(z|x), one behind the other, (B, 2D)."""
        mean, log_variance = self.encoder(values).chunk(2, dim=1)
        return torch.cat([mean + self.linear(self.shrink(values) / self.scale), log_variance], dim=1)

    @torch.no_grad()
    def quiet(self, dimensions: slice) -> None:
        """Have the encoder add nothing to these dimensions of the mean codes, before it learns what to add."""
        for weight in self.encoder[-1].parameters():
            weight[dimensions] = 0


class LinearImages(nn.Module):
    """Add to the images of a decoder what a linear map of the code gives.

    How bright a scan is, where its lungs are and how many slices it has is nearly linear in a few numbers, as principal
    components show. A stack of slices takes convolutions that share a few features thousands of steps to learn that.
    ``scripts.components`` gives both linear maps these components to start from.

    Args:
        decoder: codes (B, D) to channels (B, C, H, W), of which the first are images, by blocks whose last gives them.
        images: number of channels that are images; the others stay as they are.
        latent_dim: D.
        spatial_size: height and width of the images.
    """

    def __init__(self, decoder: Blocks, images: int, latent_dim: int, spatial_size: Sequence[int]) -> None:
        super().__init__()
        self.decoder, self.images = decoder, images
        self.linear = zero_linear(latent_dim, images * spatial_size[0] * spatial_size[1])
        self.to_images = nn.Unflatten(1, (images, *spatial_size))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, D) to channels (B, C, H, W)."""
        values = self.decoder(codes)
        linear = self.to_images(self.linear(codes))
        return torch.cat([values[:, : self.images] + linear, values[:, self.images :]], dim=1)

    @torch.no_grad()
    def quiet(self) -> None:
        """Have the decoder add nothing to the images, before it learns what to add."""
        for weight in self.decoder[-1].parameters():
            weight[: self.images] = 0


class OccupancyMaps(nn.Module):
    """Turn a decoder's last channels into occupancy maps, as a scan's masks give them: so its hearts can be encoded.

    Per slice, a softmax over LV, Myo, RV and the background, whose logit is 0 and which gets no channel.

    Args:
        images: number of channels that stay as they are; behind them are three logits per slice, in the order of the
            view's maps.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Images and logits to images and maps in [0, 1], (B, C, H, W) both."""
        logits = values[:, self.images :]
        if logits.dtype == torch.bfloat16 or logits.dtype == torch.float16:
            logits = logits.float()  # half precision would leave three digits of a share
        logits = logits.unflatten(1, [-1, 3])
        background = torch.zeros_like(logits[:, :, :1])
        maps = torch.cat([background, logits], dim=2).softmax(2)[:, :, 1:]
        return torch.cat([values[:, : self.images].to(maps.dtype), maps.flatten(1, 2)], dim=1)


class RenderedHearts(nn.Module):
    """Draw the hearts of the images from the occupancy maps: what changes a map changes the image alike.

    A decoder whose images and maps only share features may move a wall in one of them. Here a small network, the same
    for all slices, sees of a slice nothing but its maps and a blurred image, which tells how bright blood and muscle
    are in this scan. What it draws replaces the image where the maps show a heart, and
    ``RIM`` pixels around it.

    Args:
        images: number of channels that are images; behind them are three maps per slice.
        spatial_size: height and width of the image.
        width: feature channels.
    """

    def __init__(self, images: int, spatial_size: Sequence[int], width: int) -> None:
        super().__init__()
        self.images = images
        self.blurred_size = [max(1, size // BLUR) for size in spatial_size]
        self.rim = rim()
        self.drawing = nn.Sequential(
            Convolution(2, 5, width, act=ACTIVATION, norm=None),
            Convolution(2, width, width, act=ACTIVATION, norm=None),
            Convolution(2, width, 1, conv_only=True),
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Images and maps to images that agree with the same maps, (B, C, H, W) both."""
        images, flat = values[:, : self.images], values[:, self.images :]
        maps = flat.unflatten(1, [-1, 3])
        background = 1 - maps.sum(2)
        coarse = functional.adaptive_avg_pool2d(images, self.blurred_size)
        blurred = functional.interpolate(coarse, size=images.shape[2:], mode="bilinear")
        slices = torch.cat([blurred[:, :, None], background[:, :, None], maps], dim=2).flatten(0, 1)
        hearts = blurred + self.drawing(slices).view_as(images)
        drawn = self.rim(1 - background)
        return torch.cat([(1 - drawn) * images + drawn * hearts, flat], dim=1)


def rim() -> nn.MaxPool2d:
    """Adds ``RIM`` pixels around them to shares of hearts (B, C, H, W)."""
    return nn.MaxPool2d(2 * RIM + 1, stride=1, padding=RIM)


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear map that gives nothing yet."""
    linear = nn.Linear(in_features, out_features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def residual_block(in_channels: int, out_channels: int, norm: str | tuple) -> nn.Module:
    """Two 3x3 convolutions with a shortcut."""
    return UnetResBlock(2, in_channels, out_channels, kernel_size=3, stride=1, norm_name=norm, act_name=ACTIVATION)


def coarse_size(spatial_size: Sequence[int], channels: Sequence[int]) -> torch.Size:
    """Height and width of the coarsest feature map.

    Raises:
        ValueError: when the image cannot be halved as often as there are channels.
    """
    if not isinstance(spatial_size, Sequence) or len(spatial_size) != 2:
        raise ValueError(f"spatial_size {spatial_size} needs two numbers: height and width in pixels.")
    factor = 2 ** len(channels)
    if any(size % factor for size in spatial_size):
        raise ValueError(
            f"spatial_size {list(spatial_size)} must be divisible by {factor}, since {len(channels)} channels "
            f"{list(channels)} halve the image {len(channels)} times."
        )
    return torch.Size(size // factor for size in spatial_size)


ARCHITECTURES: dict[str, tuple[Callable[..., Blocks], Callable[..., Blocks]]] = {
    "residual": (Encoder, Decoder),
    "bilinear": (Encoder, partial(Decoder, interp_mode="bilinear")),
    "plain": (PlainEncoder, PlainDecoder),
}


class VariationalAutoencoder(nn.Module):
    """The encoder and decoder that every method of the paper trains.

    ``forward`` gives the reconstruction from the mean code, one tensor in and one out as bundle tools expect.

    Args:
        in_channels: channels of the image: one per phase and slice, and three more with occupancy maps.
        spatial_size: height and width of the image.
        channels: feature channels, coarsest last.
        latent_dim: dimensions of z; the first ones are those regularized by attributes.
        norm: MONAI normalization, by name or (name, arguments).
        architecture: ``residual`` (Soft-IntroVAE), ``bilinear`` (the same with bilinear upsampling) or ``plain``
            (Attri-VAE).
        checkpointing: keep less for the gradient and compute it again, see ``Blocks``.
        image_channels: the first so many channels are images, and the others occupancy maps, see ``scripts.views``; all
            of them, if not given.
        rendering_channels: width of a ``RenderedHearts`` at the decoder's end; 0 for none.
        linear_size: height and width of the images of ``LinearCodes`` beside the encoder, which ``LinearImages`` beside
            the decoder goes with; 0 for neither.

    Raises:
        ValueError: for an unknown ``architecture``, when ``spatial_size`` does not fit the number of ``channels``, for
            channels that are neither images nor three maps per slice, for rendering without maps, or for a
            ``linear_size`` that does not divide ``spatial_size``.
    """

    def __init__(
        self,
        in_channels: int = 2,
        spatial_size: Sequence[int] = (128, 128),
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        latent_dim: int = 128,
        norm: str | Sequence = "batch",
        architecture: str = "residual",
        checkpointing: bool = False,
        image_channels: int | None = None,
        rendering_channels: int = 0,
        linear_size: int = 0,
    ) -> None:
        super().__init__()
        images = in_channels if image_channels is None else image_channels
        if in_channels not in (images, 4 * images):
            raise ValueError(f"in_channels {in_channels} needs to be image_channels {images}, or four times as many.")
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture '{architecture}' is unknown; choose one of {', '.join(ARCHITECTURES)}.")
        encoder, decoder = ARCHITECTURES[architecture]
        norm = norm if isinstance(norm, str) else tuple(norm)
        self.latent_dim = latent_dim
        self.encoder: nn.Module = encoder(in_channels, spatial_size, channels, latent_dim, norm)
        self.decoder = decoder(in_channels, spatial_size, channels, latent_dim, norm)
        # What is behind the convolutions keeps little, and computing them again within it would do so twice.
        self.encoder.checkpointing = self.decoder.checkpointing = checkpointing
        if linear_size:
            if any(size % linear_size for size in spatial_size):
                raise ValueError(f"linear_size {linear_size} has to divide spatial_size {list(spatial_size)}.")
            self.encoder = LinearCodes(self.encoder, images, latent_dim, linear_size)
            self.decoder = Blocks(LinearImages(self.decoder, images, latent_dim, spatial_size))
            self.decoder.checkpointing = False
        if images < in_channels:
            self.decoder.append(OccupancyMaps(images))
        if rendering_channels:
            if images == in_channels:
                raise ValueError(f"rendering_channels {rendering_channels} needs occupancy maps: --anatomy masks.")
            self.decoder.append(RenderedHearts(images, spatial_size, rendering_channels))

    @torch.jit.export
    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (B, C, H, W) to mean and log-variance of q(z|x), each (B, latent_dim)."""
        mean, log_variance = self.encoder(image).chunk(2, dim=1)
        return mean, log_variance

    @torch.jit.export
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, latent_dim) to image (B, C, H, W)."""
        return self.decoder(codes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, C, H, W) to its reconstruction from the mean code."""
        return self.decode(self.encode(image)[0])


def sample(mean: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw z from N(mean, exp(log_variance)) with a gradient to both (the reparametrization trick).

    Args:
        mean, log_variance: (B, D).
        noise: drawn from N(0, I), (B, D), in full precision.
    """
    return mean + noise * torch.exp(0.5 * log_variance.to(noise.dtype))
