"""Jobs submitted together."""
