"""The objectives of Di Folco et al. (MICCAI 2024), Eq. 1 to 7, in one normalization.

An image x has N = C*H*W values. The reconstruction error L_r and the divergence L_KL are sums per sample, and
s = 1/N scales both, so that the weights mean the same for every image size. Where the last channels are occupancy maps
(``scripts.views``), N counts the images alone: maps add a term of their own and leave the weights of all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.losses import DiceLoss
from torch import nn

from scripts.views import View

TINY = 1e-6  # a share that the cross-entropy takes for the least


class Elbo(NamedTuple):
    """The two parts of one batch's evidence lower bound, each (B,) and positive.

    Args:
        error: reconstruction error L_r.
        kl: divergence L_KL of q(z|x) from the prior.
    """

    error: torch.Tensor
    kl: torch.Tensor

    def detach(self) -> Elbo:
        """The same numbers without gradient."""
        return Elbo(self.error.detach(), self.kl.detach())


def attribute_loss(codes: torch.Tensor, attributes: torch.Tensor, delta: float) -> torch.Tensor:
    """Attribute regularization, Eq. 1-2 (after Pati & Lerch 2021), summed over attributes.

    For attribute a on dimension k, the mean over all ordered pairs (i, j) of
    ``|tanh(delta * (z_i^k - z_j^k)) - sgn(a_i - a_j)|``.

    Args:
        codes: (B, D); dimension k belongs to attribute k.
        attributes: (B, A) with A up to D; pairs with a missing (NaN) value are left out.
        delta: steepness of the tanh.

    Raises:
        ValueError: when the shapes do not fit.
    """
    count = attributes.shape[-1]
    if codes.ndim != 2 or attributes.ndim != 2 or len(codes) != len(attributes) or codes.shape[1] < count:
        raise ValueError(
            f"codes {tuple(codes.shape)} and attributes {tuple(attributes.shape)} do not fit: expected (B, D) and "
            "(B, A) with at least one dimension per attribute: raise --latent_dim or name fewer --attributes."
        )
    regularized = codes[:, :count]
    difference = attributes[:, None] - attributes[None]
    distance = (torch.tanh(delta * (regularized[:, None] - regularized[None])) - torch.sign(difference)).abs()
    known = ~difference.isnan()  # the sign of NaN is 0, that of a tie
    pairs = known.sum((0, 1)).clamp(min=1)
    return (torch.where(known, distance, 0).sum((0, 1)) / pairs).sum()


def magnitude_loss(codes: torch.Tensor, standardized: torch.Tensor) -> torch.Tensor:
    """Squared distance of each regularized dimension from its attribute in standard deviations, summed over attributes.

    Eq. 2 asks for the order of the attributes alone; with this beside it, dimension k *is* attribute k, in units of the
    training cohort.

    Args:
        codes: (B, D); dimension k belongs to attribute k.
        standardized: attributes less their mean, by their standard deviation, (B, A); missing (NaN) ones are left out.
    """
    known = ~standardized.isnan()
    # Replaced before the difference: a NaN that is only left out of the sum would still be in its gradient.
    target = torch.where(known, standardized, 0)
    squares = torch.where(known, codes[:, : standardized.shape[1]] - target, 0).square()
    return (squares.sum(0) / known.sum(0).clamp(min=1)).sum()


def full_precision(values: torch.Tensor) -> torch.Tensor:
    """At least float32: sums over pixels and exponentials do not survive half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def squared_distance(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sum of squared differences per sample, (B, ...) twice to (B,).

    As the square of a norm, since PyTorch differentiates that in one pass over the pixels, and a power in three. In
    float32 the value of a million pixels is off by 2e-5 of itself, since a norm does not sum in pairs; no gradient is.
    """
    difference = full_precision(prediction) - full_precision(target)
    return torch.linalg.vector_norm(difference, dim=tuple(range(1, difference.ndim))).square()


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """L_KL: divergence of N(mean, exp(log_variance)) from N(0, I), summed over dimensions: (B, D) to (B,)."""
    mean, log_variance = full_precision(mean), full_precision(log_variance)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def log_mean_exp(values: torch.Tensor) -> torch.Tensor:
    """log of the mean of exp(values), (B,) to a scalar, without the underflow."""
    return values.logsumexp(0) - math.log(len(values))


def soft_dice_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - 2 sum pt / (sum p² + sum t²) of each structure over all slices, averaged over structures, per sample.

    With squares in the denominator, the least is at p = t for shares of a pixel, too, and not at p of 0 or 1.

    Args:
        prediction, target: occupancy maps (B, slices, 3, H, W).

    Returns:
        (B,).
    """
    dice = DiceLoss(squared_pred=True, reduction="none")
    return dice(prediction.transpose(1, 2), target.transpose(1, 2)).flatten(1).mean(1)


def soft_cross_entropy(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """-sum t log p over the structures and the background of a pixel, averaged over pixels, per sample.

    Args:
        prediction, target: occupancy maps (B, slices, 3, H, W); what the three leave of a pixel is background.

    Returns:
        (B,).
    """
    shares = [torch.cat([maps, 1 - maps.sum(2, keepdim=True)], 2) for maps in (prediction, target)]
    log_prediction = shares[0].clamp(min=0).add(TINY).log()
    return -(shares[1] * log_prediction).sum(2).flatten(1).mean(1)


def segmentation_loss(prediction: torch.Tensor, target: torch.Tensor, view: View) -> torch.Tensor:
    """S: soft Dice loss, mean of the phases, and cross-entropy of the occupancy maps among all channels, per sample.

    Args:
        prediction, target: (B, C, H, W).
        view: of the channels, with maps.

    Returns:
        (B,).
    """
    maps = [full_precision(view.slice_maps(values)) for values in (prediction, target)]
    dice = torch.stack([soft_dice_loss(*of_phase) for of_phase in zip(*(m.unbind(1) for m in maps), strict=True)])
    return dice.mean(0) + soft_cross_entropy(*(m.flatten(1, 2) for m in maps))


class ReconstructionLoss(nn.Module):
    """L_r(x, x̂) = mse_weight * sum (x - x̂)² + N * (perceptual_weight * P(x, x̂) + segmentation_weight * S), per sample.

    The first two terms are of the images, the third of the occupancy maps: S is their soft Dice loss (per phase and
    structure) plus their cross-entropy (per pixel).

    Args:
        mse_weight: weight of the squared error.
        perceptual_weight: weight of the perceptual distance; 0 computes none.
        perceptual: P, (B, C, H, W) twice to (B,), see ``scripts.perceptual``.
        segmentation_weight: weight of the error of the maps; 0 computes none.
        view: tells images and maps apart; without one, all channels are images.

    Raises:
        ValueError: when a perceptual weight comes without a distance.
    """

    def __init__(
        self,
        mse_weight: float,
        perceptual_weight: float = 0.0,
        perceptual: Callable | None = None,
        segmentation_weight: float = 0.0,
        view: View | None = None,
    ) -> None:
        super().__init__()
        if perceptual_weight and perceptual is None:
            raise ValueError("perceptual_weight is not 0, so that a 'perceptual' distance is needed.")
        self.mse_weight = mse_weight
        self.perceptual_weight = perceptual_weight
        self.perceptual = perceptual if perceptual_weight else None
        self.segmentation_weight = segmentation_weight
        self.view = view

    def forward(self, prediction: torch.Tensor, target: torch.Tensor, maps: bool = True) -> torch.Tensor:
        """Errors (B,) of predictions (B, C, H, W); without ``maps``, of their images alone."""
        error = full_precision(target.new_zeros(len(target)))
        if maps and self.segmentation_weight and self.view is not None and self.view.mapped:
            error = error + self.segmentation_weight * self.image_values(target) * segmentation_loss(
                prediction, target, self.view
            )
        prediction, target = self.images(prediction), self.images(target)
        if self.mse_weight:
            error = error + self.mse_weight * squared_distance(prediction, target)
        if self.perceptual is not None:
            error = error + self.perceptual_weight * target[0].numel() * self.perceptual(prediction, target)
        return error

    def images(self, values: torch.Tensor) -> torch.Tensor:
        """The images (B, P*S, H, W) among all channels (B, C, H, W)."""
        return values if self.view is None else values[:, : self.view.images]

    def image_values(self, target: torch.Tensor) -> int:
        """N: how many values the images of a sample have, of all channels (B, C, H, W)."""
        return self.images(target)[0].numel()

    def per_value(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """s * L_r, averaged over the batch: a number that can be compared between image sizes."""
        return self(prediction, target).mean() / self.image_values(target)


class RegularizedLoss(nn.Module):
    """What the objectives of both families share: the reconstruction error and the attribute loss.

    Args:
        reconstruction: L_r.
        gamma: weight of the attribute loss.
        delta: its steepness.
        magnitude: weight, in parts of ``gamma``, of ``magnitude_loss``, which the paper has not.
        attribute_scale: ``mean`` and ``std`` of the attributes (A,) in the training cohort, which it needs.

    Raises:
        ValueError: for a magnitude without a scale.
    """

    def __init__(
        self,
        reconstruction: ReconstructionLoss,
        gamma: float,
        delta: float,
        magnitude: float = 0.0,
        attribute_scale: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.reconstruction = reconstruction
        self.gamma, self.delta, self.magnitude = gamma, delta, magnitude
        if magnitude and attribute_scale is None:
            raise ValueError("magnitude_weight is not 0, so that an 'attribute_scale' is needed.")
        for key, values in (attribute_scale or {}).items():
            self.register_buffer(key, torch.tensor(values), persistent=False)

    def attribute(self, codes: torch.Tensor, attributes: torch.Tensor | None) -> torch.Tensor:
        """L_attr, or 0 where its weight is: then it is not computed, and needs no attributes."""
        if not self.gamma:
            return codes.new_zeros(())
        loss = attribute_loss(codes, attributes, self.delta)
        if self.magnitude:
            standardized = (attributes - self.mean) / self.std
            loss = loss + self.magnitude * magnitude_loss(codes, standardized.to(codes.dtype))
        return loss


class VAELoss(RegularizedLoss):
    """The objective of a variational autoencoder, Eq. 3; gamma = 0 gives beta-VAE, else Attri-VAE.

    Args:
        reconstruction: L_r.
        beta_kl: weight of the divergence, the beta of beta-VAE.
        kwargs: of ``RegularizedLoss``.
    """

    def __init__(self, reconstruction: ReconstructionLoss, beta_kl: float, **kwargs: Any) -> None:
        super().__init__(reconstruction, **kwargs)
        self.beta_kl = beta_kl

    def forward(self, attribute: torch.Tensor, real: Elbo, scale: float) -> torch.Tensor:
        """Eq. 3: s * (L_r + beta * L_KL) + gamma * L_attr, averaged over the batch."""
        return scale * (real.error + self.beta_kl * real.kl).mean() + self.gamma * attribute


class IntrospectiveLoss(RegularizedLoss):
    """The objectives of encoder (Eq. 6) and decoder (Eq. 7); gamma = 0 gives SIVAE, else AR-SIVAE.

    Args:
        reconstruction: L_r.
        beta_rec: weight of the reconstruction error.
        beta_kl: weight of the divergence of real images, and of generated ones in the decoder.
        beta_neg: weight of the divergence of generated images in the encoder.
        eta: weight of the reconstruction error of generated images in the decoder.
        maps: the error of generated hearts, in both equations, is of their occupancy maps too, and not only of images.
        kwargs: of ``RegularizedLoss``.
    """

    def __init__(
        self,
        reconstruction: ReconstructionLoss,
        beta_rec: float,
        beta_kl: float,
        beta_neg: float,
        eta: float = 0.0,
        maps: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(reconstruction, **kwargs)
        self.beta_rec, self.beta_kl, self.beta_neg, self.eta = beta_rec, beta_kl, beta_neg, eta
        self.maps = maps

    def generated_error(self, prediction: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        """L_r of generated hearts, (B,)."""
        return self.reconstruction(prediction, generated, maps=self.maps)

    def real(self, elbo: Elbo, scale: float) -> torch.Tensor:
        """-ELBO of real images, (B,)."""
        return scale * (self.beta_rec * elbo.error + self.beta_kl * elbo.kl)

    def log_exp_elbo(self, elbo: Elbo, scale: float) -> torch.Tensor:
        """log of exp(-2s * (beta_rec * L_r + beta_neg * L_KL)) of generated images, (B,): never positive.

        The exponential can only underflow; its logarithm shows when it has.
        """
        return -2 * scale * (self.beta_rec * elbo.error + self.beta_neg * elbo.kl)

    def encoder(self, attribute: torch.Tensor, real: Elbo, generated: Iterable[Elbo], scale: float) -> torch.Tensor:
        """Eq. 6: attributes are ordered, real images made likely and generated ones unlikely."""
        adversarial = sum(self.log_exp_elbo(elbo, scale).exp().mean() for elbo in generated)
        return self.gamma * attribute + self.real(real, scale).mean() + adversarial / 4

    def decoder(self, real: Elbo, generated: Iterable[Elbo], scale: float) -> torch.Tensor:
        """Eq. 7: real images are reconstructed, generated ones are made likely to the encoder."""
        adversarial = sum((self.eta * self.beta_rec * elbo.error + self.beta_kl * elbo.kl).mean() for elbo in generated)
        return scale * self.beta_rec * real.error.mean() + scale * adversarial / 2
