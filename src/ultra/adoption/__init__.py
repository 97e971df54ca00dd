"""Adoption: how a verified program becomes part of a policy: grafted, distilled, or kept beside it."""
