"""Imported by a rank, see `disk_full.resumed_without_room`: no file may be larger than told."""

import os
import resource

if "LARGEST_FILE" in os.environ:
    largest = int(os.environ["LARGEST_FILE"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
