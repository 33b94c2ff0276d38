"""cdb_video."""
