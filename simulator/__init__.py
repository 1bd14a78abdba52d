"""A stand-in for a vLLM server: its HTTP, its batching and its errors, without a GPU or a model.

It imports nothing of the pipeline it stands in for.
"""

from simulator.command import main, run
from simulator.errors import SimulatorError
from simulator.faults import Fault, parse_fault
from simulator.options import SimulatorOptions
from simulator.server import serve

__all__ = ["Fault", "SimulatorError", "SimulatorOptions", "main", "parse_fault", "run", "serve"]
