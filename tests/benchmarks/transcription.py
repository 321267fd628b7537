"""The equations of Di Folco et al. (MICCAI 2024) written down one by one: the oracle of the trainers.

A reader can hold it beside the paper: no pass through a network serves two purposes, nothing is shared with ``scripts``
but the networks, and the part that an update leaves alone is frozen by the flags of its weights. It also does what the
published code does without need: the perceptual network is not frozen, so that gradients of its weights are computed;
every channel is repeated three times; and the features of the target belong to the graph. ``tests/test_transcription``
holds losses and gradients of the trainers against it, and ``tests.benchmarks.step`` their speed.

The normalization is that of this project: L_r and L_KL are sums per sample, and s = 1/N scales both, with N values per
image (C, H, W). Occupancy maps of LV, Myo and RV, which the paper has not, are further channels and not counted in N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import lpips
import torch
from torch import nn
from torch.optim import Optimizer

from scripts.networks import VariationalAutoencoder

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Weights(NamedTuple):
    """The weights of the equations, under the names of ``train.json``.

    The images of ``phases`` phases are the first ``images`` channels; without a number, all channels are images.
    """

    mse_weight: float
    perceptual_weight: float
    beta_kl: float
    gamma: float
    delta: float
    beta_rec: float = 1.0
    beta_neg: float = 1.0
    eta: float = 0.0
    segmentation_weight: float = 0.0
    introspective_maps: bool = False
    images: int | None = None
    phases: int = 2


def attribute_loss(codes: torch.Tensor, attributes: torch.Tensor, delta: float) -> torch.Tensor:
    """Eq. 1-2: codes (B, D) and attributes (B, A) to the sum over attributes, pair by pair.

    Pairs with a missing (NaN) attribute are left out; the paper has none.
    """
    total = codes.new_zeros(())
    for k in range(attributes.shape[1]):
        z, a = codes[:, k], attributes[:, k]
        errors = []
        for i in range(len(z)):
            for j in range(len(z)):
                if not torch.isnan(a[i] - a[j]):
                    errors.append(torch.abs(torch.tanh(delta * (z[i] - z[j])) - torch.sign(a[i] - a[j])))
        if errors:
            total = total + sum(errors) / len(errors)
    return total


def l_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """L_KL: N(mean, exp(log_variance)) from N(0, I), (B, D) twice to (B,)."""
    return -0.5 * (1 + log_variance - mean**2 - torch.exp(log_variance)).sum(dim=1)


def l_r(
    x: torch.Tensor, y: torch.Tensor, weights: Weights, perceptual: Perceptual | None, with_maps: bool = True
) -> torch.Tensor:
    """L_r(x, y) = mse_weight * sum (x - y)² + N * (perceptual_weight * P(x, y) + segmentation_weight * S(x, y)).

    The first two are of the images; S is of the maps behind them. (B, C, H, W) twice to (B,).
    """
    maps = [values[:, weights.images :] for values in (x, y)] if weights.images else []
    x, y = x[:, : weights.images], y[:, : weights.images]
    values_per_image = x.shape[1] * x.shape[2] * x.shape[3]
    error = weights.mse_weight * ((x - y) ** 2).sum(dim=(1, 2, 3))
    if maps and with_maps:
        error = error + weights.segmentation_weight * values_per_image * segmentation_error(*maps, weights.phases)
    if perceptual is None:
        return error
    distances = [perceptual(x[:, [channel]], y[:, [channel]]) for channel in range(x.shape[1])]
    return error + weights.perceptual_weight * values_per_image * sum(distances) / len(distances)


def segmentation_error(x: torch.Tensor, y: torch.Tensor, phases: int) -> torch.Tensor:
    """S of given maps x and decoded ones y, (B, phases * slices * 3, H, W): soft Dice loss plus cross-entropy, (B,)."""
    slices = x.shape[1] // 3
    dice, entropy = [], []
    for number in range(slices):
        of_slice = slice(3 * number, 3 * number + 3)
        background = [1 - maps[:, of_slice].sum(dim=1) for maps in (x, y)]
        pairs = [(x[:, k], y[:, k]) for k in range(3 * number, 3 * number + 3)] + [tuple(background)]
        entropy.append(-sum(given * torch.log(decoded + 1e-6) for given, decoded in pairs).mean(dim=(1, 2)))
    for phase in range(phases):
        for structure in range(3):
            first = phase * slices // phases
            channels = [3 * number + structure for number in range(first, first + slices // phases)]
            given, decoded = x[:, channels], y[:, channels]
            overlap = 2 * (given * decoded).sum(dim=(1, 2, 3)) + 1e-5
            dice.append(1 - overlap / ((given**2).sum(dim=(1, 2, 3)) + (decoded**2).sum(dim=(1, 2, 3)) + 1e-5))
    return sum(dice) / len(dice) + sum(entropy) / len(entropy)


def reparametrize(mean: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z = mean + standard deviation * noise, each (B, D)."""
    return mean + torch.exp(0.5 * log_variance) * noise


class FeatureError(nn.Module):
    """P(x, y) of the published code: mean squared error of a trunk's activations, summed over layers.

    Args:
        trunk: convolutional part of a torchvision network.
        positions: indices of the activations in it, ascending.
        imagenet_statistics: normalize the images as in the training of the trunk.
    """

    def __init__(self, trunk: nn.Sequential, positions: Sequence[int], imagenet_statistics: bool = False) -> None:
        super().__init__()
        self.trunk = trunk[: positions[-1] + 1].requires_grad_(True)  # as the published code leaves it
        self.positions = positions
        self.imagenet_statistics = imagenet_statistics

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Activations of gray images (B, 1, H, W)."""
        image = image.repeat(1, 3, 1, 1)
        if self.imagenet_statistics:
            mean, deviation = image.new_tensor([0.485, 0.456, 0.406]), image.new_tensor([0.229, 0.224, 0.225])
            image = (image - mean[:, None, None]) / deviation[:, None, None]
        found = []
        for position, layer in enumerate(self.trunk):
            image = layer(image)
            if position in self.positions:
                found.append(image)
        return found

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Distances (B,) of gray images (B, 1, H, W)."""
        layers = zip(self.features(x), self.features(y), strict=True)
        return sum(((fx - fy) ** 2).mean(dim=(1, 2, 3)) for fx, fy in layers)


class LPIPS(nn.Module):
    """P(x, y) of Zhang et al. (CVPR 2018), v0.1, with AlexNet: weighted squares of the differences of unit vectors.

    Args:
        trunk: convolutional part of torchvision's AlexNet.
    """

    def __init__(self, trunk: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk[:12].requires_grad_(True)
        file = Path(lpips.__file__).with_name("weights") / "v0.1" / "alex.pth"
        heads = torch.load(file, map_location="cpu", weights_only=True)
        self.heads = nn.ParameterList(heads[f"lin{layer}.model.1.weight"] for layer in range(5))
        # In single precision, as they are published.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Unit feature vectors of each activation of gray images (B, 1, H, W) in [0, 1]."""
        image = ((2 * image - 1).repeat(1, 3, 1, 1) - self.shift) / self.scale
        found = []
        for layer in self.trunk:
            image = layer(image)
            if isinstance(layer, nn.ReLU):
                found.append(image / (torch.sqrt((image**2).sum(dim=1, keepdim=True)) + 1e-10))
        return found

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Distances (B,) of gray images (B, 1, H, W)."""
        layers = zip(self.features(x), self.features(y), self.heads, strict=True)
        return sum((head * (fx - fy) ** 2).sum(dim=1).mean(dim=(1, 2)) for fx, fy, head in layers)


def vae_step(
    network: VariationalAutoencoder,
    optimizer: Optimizer,
    image: torch.Tensor,
    attributes: torch.Tensor | None,
    noise: Mapping[str, torch.Tensor],
    weights: Weights,
    perceptual: Perceptual | None = None,
) -> dict[str, torch.Tensor]:
    """One step by Eq. 3: s * (L_r(x, D(z)) + beta * L_KL(x)) + gamma * L_attr.

    Args:
        network: both parts learn.
        optimizer: of all its weights.
        image: (B, C, H, W).
        attributes: (B, A); not needed where gamma is 0.
        noise: ``codes`` (B, D) from N(0, I).
        weights: of the equation.
        perceptual: P of gray images, (B, 1, H, W) twice to (B,); none leaves it out.

    Returns:
        The terms that ``VAETrainer`` reports. The gradients stay with the parameters.
    """
    s = 1 / image[0, : weights.images].numel()
    mean, log_variance = network.encode(image)
    z = reparametrize(mean, log_variance, noise["codes"])
    attribute = attribute_loss(z, attributes, weights.delta) if weights.gamma else z.new_zeros(())
    error, kl = l_r(image, network.decode(z), weights, perceptual), l_kl(mean, log_variance)
    loss = (s * (error + weights.beta_kl * kl)).mean() + weights.gamma * attribute
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {
        "loss": loss,
        "attribute_loss": attribute,
        "reconstruction_loss": s * error.mean(),
        "kl_real": kl.mean(),
    }


def introspective_step(
    network: VariationalAutoencoder,
    optimizer: Optimizer,
    decoder_optimizer: Optimizer,
    image: torch.Tensor,
    attributes: torch.Tensor | None,
    noise: Mapping[str, torch.Tensor],
    weights: Weights,
    perceptual: Perceptual | None = None,
    warmup: bool = False,
) -> dict[str, torch.Tensor]:
    """One step of the encoder by Eq. 6, then one of the decoder by Eq. 7.

    The decoder's step starts from the codes that the encoder's step drew, as in the public code of Soft-IntroVAE.

    Args:
        network: the encoder judges and the decoder generates.
        optimizer: of the encoder.
        decoder_optimizer: of the decoder.
        image, attributes, weights, perceptual: as those of ``vae_step``.
        noise: from N(0, I), each (B, D): ``codes`` of real images; ``prior``; ``reconstructed`` and ``generated``, of
            the codes of the two kinds of fakes in Eq. 6; ``reconstructed_again`` and ``generated_again``, the same in
            Eq. 7, where eta is not 0.
        warmup: leave out the fakes.

    Returns:
        The terms that ``IntrospectiveTrainer`` reports. The gradients stay with the parameters.
    """
    codes, encoder_terms = encoder_step(network, optimizer, image, attributes, noise, weights, perceptual, warmup)
    decoder_loss = decoder_step(network, decoder_optimizer, image, codes, noise, weights, perceptual, warmup)
    return encoder_terms | {"decoder_loss": decoder_loss}


def encoder_step(
    network: VariationalAutoencoder,
    optimizer: Optimizer,
    image: torch.Tensor,
    attributes: torch.Tensor | None,
    noise: Mapping[str, torch.Tensor],
    weights: Weights,
    perceptual: Perceptual | None,
    warmup: bool,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Eq. 6 with the decoder frozen; the codes of the real images, and the terms.

    gamma * L_attr + s * (beta_rec * L_r(x, D(z)) + beta_kl * L_KL(x))
    + 1/4 * sum over g in {D(z), D(prior)} of mean exp(-2 s * (beta_rec * L_r(g, D(z_g)) + beta_neg * L_KL(g)))
    """
    s = 1 / image[0, : weights.images].numel()
    network.encoder.requires_grad_(True)
    network.decoder.requires_grad_(False)

    mean, log_variance = network.encode(image)
    z = reparametrize(mean, log_variance, noise["codes"])
    reconstruction = network.decode(z)
    attribute = attribute_loss(z, attributes, weights.delta) if weights.gamma else z.new_zeros(())
    error, kl = l_r(image, reconstruction, weights, perceptual), l_kl(mean, log_variance)
    loss = weights.gamma * attribute + (s * (weights.beta_rec * error + weights.beta_kl * kl)).mean()
    terms = {"attribute_loss": attribute, "reconstruction_loss": s * error.mean(), "kl_real": kl.mean()}

    fakes = {}
    if not warmup:
        fakes = {"reconstructed": reconstruction.detach(), "generated": network.decode(noise["prior"]).detach()}
    for name, fake in fakes.items():
        mean_g, log_variance_g = network.encode(fake)
        z_g = reparametrize(mean_g, log_variance_g, noise[name])
        error_g = l_r(fake, network.decode(z_g), weights, perceptual, weights.introspective_maps)
        kl_g = l_kl(mean_g, log_variance_g)
        likelihood = torch.exp(-2 * s * (weights.beta_rec * error_g + weights.beta_neg * kl_g)).mean()
        loss = loss + likelihood / 4
        terms |= {f"kl_{name}": kl_g.mean(), f"log_exp_elbo_{name}": likelihood.log()}

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return z.detach(), {"encoder_loss": loss} | terms


def decoder_step(
    network: VariationalAutoencoder,
    optimizer: Optimizer,
    image: torch.Tensor,
    codes: torch.Tensor,
    noise: Mapping[str, torch.Tensor],
    weights: Weights,
    perceptual: Perceptual | None,
    warmup: bool,
) -> torch.Tensor:
    """Eq. 7 with the encoder frozen; the loss.

    s * beta_rec * L_r(x, D(z))
    + s/2 * sum over g in {D(z), D(prior)} of (eta * beta_rec * L_r(g detached, D(z_g detached)) + beta_kl * L_KL(g))
    """
    s = 1 / image[0, : weights.images].numel()
    network.encoder.requires_grad_(False)
    network.decoder.requires_grad_(True)

    reconstruction = network.decode(codes)
    loss = (s * weights.beta_rec * l_r(image, reconstruction, weights, perceptual)).mean()
    fakes = {} if warmup else {"reconstructed": reconstruction, "generated": network.decode(noise["prior"])}
    for name, fake in fakes.items():
        mean_g, log_variance_g = network.encode(fake)
        loss = loss + (s * weights.beta_kl * l_kl(mean_g, log_variance_g)).mean() / 2
        if weights.eta:
            z_g = reparametrize(mean_g, log_variance_g, noise[f"{name}_again"]).detach()
            error_g = l_r(fake.detach(), network.decode(z_g), weights, perceptual, weights.introspective_maps)
            loss = loss + (s * weights.eta * weights.beta_rec * error_g).mean() / 2

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    network.encoder.requires_grad_(True)
    return loss
