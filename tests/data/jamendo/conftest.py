"""Fixtures of the Jamendo tests."""

from support.jamendo_mirror import mirror, published

__all__ = ["mirror", "published"]
