"""From clips to logits per head."""
