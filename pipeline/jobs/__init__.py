"""A single job's way in, and its outcome's way back."""
