"""Streamed answers through Redis."""
