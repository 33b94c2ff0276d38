"""From a loss to trained weights."""
