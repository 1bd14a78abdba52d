"""All that runs on the loop."""
