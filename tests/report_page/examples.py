"""A model whose hearts are disks of known sizes, and pages of them."""

from __future__ import annotations

import torch

from scripts.calibration.population import Population, fit_population
from scripts.cohort.attributes import VOLUMES
from scripts.counterfactual import Counterfactuals
from scripts.report_page.hearts import Heart, HeartFrames
from scripts.views import View

VIEW = View(slices="stack", anatomy="masks", stack_slices=3)
SPACING = 4.0  # mm
SIZE = (32, 32)
DIMENSIONS = 8
RADII = (5.0, 6.0, 8.0, 3.5, 5.0, 8.0)  # pixels at code 0: LV, RV and epicardium at ED, then at ES


class Disks(torch.nn.Module):
    """Decodes an LV in its myocardium and an RV beside it; dimension k moves the radius that volume k depends on."""

    def __init__(self, view: View = VIEW) -> None:
        super().__init__()
        self.view, self.anything = view, torch.nn.Parameter(torch.zeros(1))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, D) to all channels of the view, at 32 x 32."""
        lv, rv, epicardium = (torch.tensor(RADII) + codes[:, :6]).unflatten(1, (2, 3)).unbind(2)
        cavity, wall, right = disk(lv, 20), disk(epicardium, 20), disk(rv, 8)
        maps = torch.stack([cavity * wall, wall - cavity * wall, right * (1 - wall)], dim=2)  # (B, 2, 3, H, W)
        images = 0.1 + 0.8 * maps[:, :, 0] + 0.2 * maps[:, :, 1] + 0.7 * maps[:, :, 2]
        count = len(self.view.slice_names)
        phases = len(self.view.phases)
        images, maps = images[:, :phases, None].expand(-1, -1, count, -1, -1), maps[:, :phases, None]
        maps = maps.expand(-1, -1, count, -1, -1, -1) if self.view.mapped else maps[:, :, :0]
        return torch.cat([images.flatten(1, 2), maps.flatten(1, 3)], dim=1)


def disk(radius: torch.Tensor, x: float) -> torch.Tensor:
    """Shares (B, P, H, W) of a disk around row 16 and a column, for radii (B, P) in pixels."""
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return torch.sigmoid(2 * (radius[..., None, None] - torch.hypot(rows - 16.0, columns - x)))


def some_codes(count: int = 60, seed: int = 0) -> torch.Tensor:
    """Codes (count, D) of a cohort."""
    return 0.6 * torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed))


def some_population() -> Population:
    """Of hearts whose volumes are those of their disks."""
    codes = some_codes()
    volumes = VIEW.volumes(Disks().decode(codes), SPACING)
    attributes = torch.stack([volumes[name] for name in VOLUMES], dim=1)
    return fit_population(codes.double().numpy(), attributes.double().numpy(), VOLUMES)


def some_frames(view: View = VIEW, measure=None, changes=(-10, 10)) -> HeartFrames:
    """What makes pages of disks."""
    tool = Counterfactuals(Disks(view), view, SPACING, some_population())
    return HeartFrames(tool, changes, measure, "a ruler")


def some_heart(number: int = 1, view: View = VIEW, **options) -> Heart:
    """A subject of average size."""
    code = some_codes(seed=number)[0] / 4
    return Heart(number, Disks(view).decode(code[None])[0], code, dict.fromkeys(VOLUMES, 100.0), **options)


def ruler(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """An instrument that finds 90 % of each volume."""
    return {name: 0.9 * volume for name, volume in VIEW.volumes(images, SPACING).items()}
