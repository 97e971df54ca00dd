"""What modulates training: one protocol, one file per method."""

from ultra.guidance.base import Guidance, Intervention, LossTerm

__all__ = ["Guidance", "Intervention", "LossTerm"]
