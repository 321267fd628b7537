"""What a decoder has to learn for a changed code to show the changed heart: a term that the paper has not.

The attribute loss (Eq. 2) is of the encoder alone: it says what dimension k of a scan's code shall be, and nothing of
what the decoder makes of a code in which that dimension is another. Since all dimensions carry the size of a heart, it
does half of what it was asked. Here it is asked, and its decoded maps are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from scripts.cohort.attributes import VOLUMES
from scripts.reading import HeartReader
from scripts.views import View

RIDGE = 1e-3  # attributes may be nearly collinear


class ChangeLoss(nn.Module):
    """How far the volumes of decoded maps are from those that moved codes ask for.

    The regularized dimensions of each code move at random and independently of each other, or, of half of the codes,
    become another heart's, drawn from a Gaussian of the cohort's attributes (now and then of none that could be, where
    volumes vary as much as their mean); dimension k then asks for the volume ``mean_k + std_k * z_k``, as
    ``magnitude_loss`` teaches it to the encoder. The other dimensions stay those of the scan, and must not tell its
    volumes. The error is squared, in standard deviations, summed over attributes. Codes come without gradient: this is
    for the decoder to learn.

    Smeared maps would have the right volume, too. So shares are sharpened before they are measured, and the term comes
    in late and small, once the decoder draws hearts. With a reader, the images of the same hearts have to show their
    maps.

    Args:
        weight: of the term, once it is all there.
        view: a stack with occupancy maps, whose volumes can be measured.
        spacing: pixel size in mm.
        attributes: volumes, in the order of their dimensions.
        attribute_scale: their ``mean`` and ``std`` in the training cohort, in mL.
        correlation: of them there, (A, A).
        reach: standard deviation of the moves, in units of the dimensions.
        sharpness: power to which shares are raised before they are measured.
        start: first epoch with the term.
        ramp: epochs from there on in which it grows to its weight.
        reader: reads maps in decoded images.
        reading: weight, in parts of ``weight``, of what it finds.

    Raises:
        ValueError: for a view or attributes that decoded maps do not show, naming the key.
    """

    def __init__(
        self,
        weight: float,
        view: View,
        spacing: float,
        attributes: Sequence[str],
        attribute_scale: Mapping[str, Sequence[float]],
        correlation: Sequence[Sequence[float]],
        reach: float,
        sharpness: float,
        start: int,
        ramp: int,
        reader: HeartReader | None = None,
        reading: float = 0.0,
    ) -> None:
        super().__init__()
        if not (view.is_stack and view.mapped):
            raise ValueError("change_weight needs decoded volumes: --slices stack and --anatomy masks, or set it to 0.")
        others = [name for name in attributes if name not in VOLUMES]
        if others:
            raise ValueError(
                f"change_weight needs volumes as attributes, which {', '.join(others)} is not; set it to 0."
            )
        self.weight, self.view, self.spacing, self.names = weight, view, spacing, tuple(attributes)
        for key, values in attribute_scale.items():
            self.register_buffer(key, torch.tensor(values), persistent=False)
        covariance = torch.tensor(correlation) + RIDGE * torch.eye(len(correlation))
        self.register_buffer("factor", torch.linalg.cholesky(covariance), persistent=False)
        self.reach, self.sharpness, self.start, self.ramp = reach, sharpness, start, ramp
        self.reader, self.reading = reader, reading

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch, the first of which is 1."""
        return self.weight * min(max(epoch - self.start + 1, 0) / max(self.ramp, 1), 1)

    def forward(
        self, decode: Callable[[torch.Tensor], torch.Tensor], codes: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Errors (B,).

        Args:
            decode: codes to all channels (B, C, H, W).
            codes: (B, D).
            noise: drawn from N(0, I), (B, D).
        """
        count = len(self.names)
        own, drawn = codes.detach()[:, :count], noise[:, :count]
        # The noise of a dimension that does not move decides, so that each row of a batch is drawn for itself.
        other = noise[:, -1:] > 0 if noise.shape[1] > count else torch.zeros_like(noise[:, :1], dtype=torch.bool)
        asked = torch.where(other, drawn @ self.factor.to(drawn.dtype).T, own + self.reach * drawn)
        decoded = decode(torch.cat([asked, codes.detach()[:, count:]], dim=1))
        volumes = self.view.volumes(sharpened(decoded.to(asked.dtype), self.view, self.sharpness), self.spacing)
        found = (torch.stack([volumes[name] for name in self.names], dim=1) - self.mean) / self.std
        errors = (found - asked).square().sum(1)
        return errors if self.reader is None else errors + self.reading * self.reader(decoded)


def sharpened(values: torch.Tensor, view: View, power: float) -> torch.Tensor:
    """All channels (B, C, H, W), the shares of each pixel background too, raised to a power and made shares again."""
    maps = view.slice_maps(values)
    background = (1 - maps.sum(-3, keepdim=True)).clamp(min=0)
    shares = torch.cat([background, maps], dim=-3).clamp(min=0) ** power
    sharp = (shares / shares.sum(-3, keepdim=True))[..., 1:, :, :]
    return torch.cat([values[:, : view.images], sharp.flatten(1, 3)], dim=1)
