"""What tools/benchmark.py measures: a file a subcommand, and what they share."""
