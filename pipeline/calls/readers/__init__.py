"""Call files."""
