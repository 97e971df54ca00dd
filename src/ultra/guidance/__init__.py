"""What modulates training: one protocol, one file per method."""

from ultra.guidance.base import Guidance, Intervention, LossTerm, NoGuidance

__all__ = ["Guidance", "Intervention", "LossTerm", "NoGuidance"]
