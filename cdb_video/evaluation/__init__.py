"""From logits to numbers and files."""
