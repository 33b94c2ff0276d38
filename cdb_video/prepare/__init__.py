"""Before training: look the data over, and re-encode it for faster decoding."""
