"""Encoder, decoder and variational autoencoder, from MONAI blocks.

The residual network is that of Soft-IntroVAE (Daniel & Tamar, CVPR 2021), which the paper uses with channels
64-128-256-512-512 and 128 dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution, UnetResBlock, UpSample
from torch import nn

ACTIVATION = ("leakyrelu", {"negative_slope": 0.2, "inplace": True})


class Encoder(nn.Sequential):
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


class Decoder(nn.Sequential):
    """z to image: residual blocks with nearest-neighbor upsampling, then a 5x5 convolution without activation.

    Args:
        out_channels: channels of the image.
        spatial_size, channels, latent_dim, norm: as those of the encoder that it mirrors.
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
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, channels[-1] * coarse.numel()),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (channels[-1], *coarse)),
        ]
        width = channels[-1]
        for narrow in reversed(channels):
            upsample = UpSample(
                2, narrow, narrow, 2, mode="nontrainable", pre_conv=None, interp_mode="nearest", align_corners=None
            )
            layers += [residual_block(width, narrow, norm), upsample]
            width = narrow
        layers += [
            residual_block(width, width, norm),
            Convolution(2, width, out_channels, kernel_size=5, conv_only=True),
        ]
        super().__init__(*layers)


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


class VariationalAutoencoder(nn.Module):
    """The encoder and decoder that every method of the paper trains.

    ``forward`` gives the reconstruction from the mean code, one tensor in and one out as bundle tools expect.

    Args:
        in_channels: channels of the image, one per phase and slice.
        spatial_size: height and width of the image.
        channels: feature channels, coarsest last.
        latent_dim: dimensions of z; the first ones are those regularized by attributes.
        norm: MONAI normalization, by name or (name, arguments).

    Raises:
        ValueError: when ``spatial_size`` does not fit the number of ``channels``.
    """

    def __init__(
        self,
        in_channels: int = 2,
        spatial_size: Sequence[int] = (128, 128),
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        latent_dim: int = 128,
        norm: str | Sequence = "batch",
    ) -> None:
        super().__init__()
        norm = norm if isinstance(norm, str) else tuple(norm)
        self.encoder = Encoder(in_channels, spatial_size, channels, latent_dim, norm)
        self.decoder = Decoder(in_channels, spatial_size, channels, latent_dim, norm)

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


def sample(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Draw z from N(mean, exp(log_variance)) with a gradient to both (the reparametrization trick)."""
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
