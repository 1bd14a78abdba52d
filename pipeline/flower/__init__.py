"""Flower, which shows chunks: model, lane, batch and rows done.

chunks  the fields of a chunk, added to Flower's tasks
main    starts Flower
"""
