"""What an evaluation keeps of its subjects: numbers, gathered batch by batch, so that no image stays in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from scripts.engines import ATTRIBUTES, CODES, LOG_VARIANCES


class SubjectRecords:
    """Codes, their log-variances and attributes of each subject. Attach it to a ``CodeEvaluator``.

    Args:
        items: the subjects of a datalist, in the order of the data loader.
        pseudonyms: subject to the number that stands for it, see ``pseudonyms_of``. Names are not kept, so that no
            table or figure can have them.

    After the run, ``pseudonyms`` holds the subjects' numbers, ``codes`` and ``log_variances`` are (subjects, D),
    ``attributes`` is (subjects, A).
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], pseudonyms: Mapping[str, int]) -> None:
        self.pseudonyms = [pseudonyms[item["subject"]] for item in items]
        self.batches: dict[str, list[np.ndarray]] = {}

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def start(self, engine: Engine) -> None:
        """Forget the run before."""
        self.batches = {key: [] for key in (CODES, LOG_VARIANCES, ATTRIBUTES)}

    def collect(self, engine: Engine) -> None:
        """Add one batch."""
        for key, batches in self.batches.items():
            batches.append(engine.state.output[key].double().cpu().numpy())

    @property
    def codes(self) -> np.ndarray:
        """Means of q(z|x)."""
        return np.concatenate(self.batches[CODES])

    @property
    def log_variances(self) -> np.ndarray:
        """Logarithms of its variances."""
        return np.concatenate(self.batches[LOG_VARIANCES])

    @property
    def attributes(self) -> np.ndarray:
        """Attributes; NaN where missing."""
        return np.concatenate(self.batches[ATTRIBUTES])

    def sampled_codes(self, seed: int) -> np.ndarray:
        """Codes drawn from q(z|x), as published figures use them, (subjects, D)."""
        noise = np.random.default_rng(seed).standard_normal(self.codes.shape)
        return self.codes + noise * np.exp(0.5 * self.log_variances)


class ImageOutputs:
    """What another network gives on the images of an evaluation, such as features or predictions.

    Args:
        network: images (B, C, H, W) to vectors (B, F); evaluated without gradients.
        limit: images after the first so many are left out, to bound the memory.

    Raises:
        ValueError: for a limit that leaves out all.
    """

    def __init__(self, network: nn.Module, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"feature_subjects is {limit}: at least 1 is needed (realism needs 10).")
        self.network, self.limit = network, limit
        self.batches: list[np.ndarray] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda engine: self.batches.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def collect(self, engine: Engine) -> None:
        """Add one batch."""
        left = None if self.limit is None else self.limit - sum(map(len, self.batches))
        images = engine.state.output[Keys.IMAGE][:left]
        if len(images):
            with torch.no_grad():
                self.batches.append(self.network.eval()(images).double().cpu().numpy())

    @property
    def values(self) -> np.ndarray:
        """(images, F)."""
        return np.concatenate(self.batches)


class Examples:
    """The first images and their reconstructions, for pictures.

    Args:
        count: how many subjects.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.images = self.reconstructions = torch.empty(0)

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def start(self, engine: Engine) -> None:
        """Forget the run before."""
        self.images = self.reconstructions = torch.empty(0)

    def collect(self, engine: Engine) -> None:
        """Add of one batch what is still wanted."""
        left = self.count - len(self.images)
        if left > 0:
            image, prediction = (engine.state.output[key][:left].cpu() for key in (Keys.IMAGE, Keys.PRED))
            self.images = torch.cat([self.images, image])
            self.reconstructions = torch.cat([self.reconstructions, prediction])
