"""Flower, with our chunks readable in it: model, lane, batch and how many rows are done.

chunks  what Flower remembers of a task, ours added
main    starts it
"""
