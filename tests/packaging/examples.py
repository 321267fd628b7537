"""A bundle with untrained weights, to be packaged in tests."""

from __future__ import annotations

import io
import struct
import zlib

import torch

from scripts.calibration.calibration import PERCENTILES, Calibration
from scripts.calibration.lines import Line
from scripts.calibration.novelty import NoveltyModel, readings
from scripts.checkpoint import fingerprint
from scripts.networks import VariationalAutoencoder
from scripts.packaging.configs import ModelConfig, merge_overlays
from scripts.packaging.contents import INFERENCE, collect
from scripts.packaging.images import SIGNATURE
from scripts.storage import write_json


def saved(content):
    """A checkpoint as it should be saved: to an open file, so that the archive has no name."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def chunk(kind, data=b""):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*between):
    """A PNG file of one gray pixel, with further chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return SIGNATURE + header + b"".join(between) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND")


def add_model(root):
    """Put untrained weights of compact.json, their settings and a calibration into a bundle."""
    contents = collect(root)[0]
    config = ModelConfig(merge_overlays(contents, ["compact.json"])[INFERENCE])
    torch.manual_seed(0)
    network = VariationalAutoencoder(2, (64, 64), (16, 32, 64, 128), 32, ("group", {"num_groups": 8})).eval()
    models = root / "models"
    models.mkdir()
    (models / "model.pt").write_bytes(saved(network.state_dict()))
    write_json(models / "settings.json", config.settings | {"cohort": "0" * 64, "seed": 0})
    calibration(config.settings, network, fingerprint(models / "model.pt")).write(models / "calibration.json")


@torch.no_grad()
def calibration(settings, network, sha256):
    """A calibration on noise."""
    read = {}
    for name in ("sound", "motion"):
        image = torch.rand(20, 2, 64, 64)
        codes, log_variances = network.encode(image)
        read[name] = readings(codes, log_variances, image, network.decode(codes), settings["phases"])
    novelty = NoveltyModel.fit(read["sound"], {"motion": read["motion"]}, read["sound"])
    lines = {name: Line(k, 10.0, 100.0, 30.0, 0.95, 0.5) for k, name in enumerate(settings["attributes"])}
    quantiles = {name: [100.0 + p for p in PERCENTILES] for name in lines}
    known = {"phases": settings["phases"], "attributes": settings["attributes"], "level": 0.95, "threshold": 99}
    return Calibration(sha256, known, lines, quantiles, novelty, 0.1)
