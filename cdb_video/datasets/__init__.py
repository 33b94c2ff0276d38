"""Which videos, which labels."""
