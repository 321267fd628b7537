"""What speaks against packaging a bundle: every place at once, so that one run shows all that is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Finding(NamedTuple):
    """One reason not to package.

    Args:
        place: file within the bundle, and line, key or tensor where there is one.
        reason: what is wrong, and what to do.
    """

    place: str
    reason: str


class Refused(ValueError):
    """The bundle is not packaged; names every place and its reason."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = sorted(set(findings))
        listed = "\n".join(f"  {place}: {reason}" for place, reason in self.findings)
        super().__init__(f"nothing was written, for {len(self.findings)} reason(s):\n{listed}")
