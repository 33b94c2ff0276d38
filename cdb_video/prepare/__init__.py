"""Before training: look the data over."""
