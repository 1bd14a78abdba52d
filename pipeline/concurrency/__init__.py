"""Asyncio building blocks."""
