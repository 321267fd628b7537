"""The trained model for people who do not want configs: scans to images, images to codes, and codes to images.

Every MONAI bundle names its code ``scripts``, so that the bundle's own folder has to come first on the path::

    import sys
    sys.path.insert(0, "<bundle>")
    from scripts.api import load

    model = load("<bundle>")
    codes = model.encode(model.crop("<scans>/1001"))
    images = model.decode(codes)
"""

from __future__ import annotations

import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow, create_workflow

from scripts import bundle_root
from scripts.checkpoint import load_weights
from scripts.cohort.single import subject_item
from scripts.networks import VariationalAutoencoder
from scripts.overrides import check_keys, declared_keys
from scripts.shipped import require_shipped
from scripts.views import View

BATCH_SIZE = 64


class Model:
    """A trained model.

    Args:
        workflow: the bundle's inference, initialized.

    Attributes:
        attributes: names of the regularized attributes; dimension k of a code grows with attribute k.
        view: what the channels of an image show: ``view.channel_names``, and images and maps apart.
        phases: of the view.
        image_size: channels, height and width of an image.
        latent_dim: dimensions of a code.
        network: the network itself, in evaluation mode.
    """

    def __init__(self, workflow: ConfigWorkflow) -> None:
        content = workflow.parser.get_parsed_content
        # Not by the config's own item, in which MONAI would wrap an error in others.
        load_weights(content("network"), content("ckpt_path"), content("settings"))
        self.network: VariationalAutoencoder = content("network").eval()
        self.view: View = content("view")
        self.phases: tuple[str, ...] = self.view.phases
        self.attributes: tuple[str, ...] = tuple(content("attributes")) if content("regularize") else ()
        self.image_size: tuple[int, ...] = (self.view.channels, *content("spatial_size"))
        self.latent_dim = self.network.latent_dim
        self._preprocessing, self._rules = content("preprocessing"), content("rules")

    def crop(self, folder: str | os.PathLike) -> torch.Tensor:
        """The image (C, H, W) of a subject: what the network sees of it, values 0 to 1.

        Args:
            folder: a subject's folder in the UKBB format, with scans and masks.

        Raises:
            SubjectError: with the reason why the subject cannot be used.
        """
        return self._preprocessing(subject_item(folder, self._rules))["image"]

    def encode(self, images: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Images (B, C, H, W), or one (C, H, W), with values 0 to 1, to their codes (B, D): means of q(z|x).

        Raises:
            ValueError: for another shape, naming the one that is expected.
        """
        return self._run(lambda batch: self.network.encode(batch)[0], images, self.image_size, "images")

    def decode(self, codes: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Codes (B, D), or one (D,), to images (B, C, H, W); values are not clipped to 0 to 1.

        Raises:
            ValueError: for another shape, naming the one that is expected.
        """
        return self._run(self.network.decode, codes, (self.latent_dim,), "codes")

    @torch.inference_mode()
    def _run(self, function: Any, values: torch.Tensor | np.ndarray, size: Sequence[int], name: str) -> torch.Tensor:
        """Apply a part of the network in batches; the result is on the CPU."""
        values = torch.as_tensor(values)
        if values.shape == torch.Size(size):
            values = values[None]
        if values.shape[1:] != torch.Size(size) or not len(values):
            expected = ", ".join(map(str, size))
            raise ValueError(f"{name} have shape {tuple(values.shape)}; expected (B, {expected}) with B of at least 1.")
        like = next(self.network.parameters())
        return torch.cat([function(batch.to(like)).cpu() for batch in values.split(BATCH_SIZE)])


def load(
    bundle: str | os.PathLike | None = None,
    ckpt_path: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    overlays: Sequence[str] = (),
    **overrides: Any,
) -> Model:
    """Load the model of a packaged bundle, or of a checkout.

    Args:
        bundle: the bundle's folder, or its zip; by default the one that this code belongs to. Its configs run as code,
            so that it must be one you trust. The code of networks and transforms is that of this module's own bundle.
        ckpt_path: weights; by default ``models/model.pt`` of the bundle.
        device: by default a GPU where there is one.
        overlays: configs behind inference.json that the training had, such as ``compact.json``. A packaged bundle needs
            none.
        overrides: any other keys of inference.json.

    Raises:
        FileNotFoundError: when there is no such bundle, or it has no weights; the message says where to get them.
        ValueError: when weights and overlays do not fit, the weights are not those that the bundle lists, or for a key
            that no config declares.
    """
    with unpacked(bundle or bundle_root()) as root:
        files = [root / "configs" / name for name in ("inference.json", *overlays)]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"'{bundle}' is no bundle of this kind: {missing[0]} does not exist.")
        check_keys(overrides, declared_keys(files))
        # Absolute, since MONAI would take a name that begins with $ for code.
        weights = Path(ckpt_path or root / "models" / "model.pt").absolute()
        require_shipped(weights)
        if not weights.is_file():
            raise FileNotFoundError(
                f"there are no weights '{weights}': name a file with ckpt_path, as load(ckpt_path=...)."
            )
        chosen = {} if device is None else {"device": str(device)}
        with warnings.catch_warnings():
            # That configs run as code is said above.
            warnings.filterwarnings("ignore", message="parsing config_file")
            workflow = create_workflow(
                config_file=[str(file) for file in files],
                workflow_type="infer",
                logging_file=False,
                bundle_root=str(root),
                ckpt_path=str(weights),
                **chosen,
                **overrides,
            )
        return Model(workflow)


@contextmanager
def unpacked(bundle: str | os.PathLike) -> Iterator[Path]:
    """The folder of a bundle; that of a zip exists only within the block."""
    path = Path(bundle).absolute()
    if not zipfile.is_zipfile(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        inside = sorted(Path(folder).rglob("configs/inference.json"), key=lambda file: len(file.parts))
        yield inside[0].parents[1] if inside else Path(folder)
