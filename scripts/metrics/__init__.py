"""Interpretability metrics: the public protocols. What they are made of lies in the modules beside."""

from scripts.metrics.protocols import (
    active_units,
    held_out_r2,
    mean_spearman,
    paper_intervals,
    paper_protocol,
    partial_correlations,
    reference_codes,
    sound_protocol,
    spearman,
)

__all__ = [
    "active_units",
    "held_out_r2",
    "mean_spearman",
    "paper_intervals",
    "paper_protocol",
    "partial_correlations",
    "reference_codes",
    "sound_protocol",
    "spearman",
]
