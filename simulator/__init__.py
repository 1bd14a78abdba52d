"""A stand-in for a vLLM server: its HTTP, its batching and its errors, without a GPU or a model.

The package does not import the pipeline.

    http       the routes of a vLLM server, and the routes that only the simulator has
    engine     continuous batching: slots, a waiting queue, a prefix cache, the cost of a step
    answers    the text of an answer, its tokens and its logprobs
    requests   the fields of a request: sampling, constraints, prompts, tokens
    command    the command line
    options    everything that can be configured
    faults     which request fails, and how
    errors     what can go wrong
"""

from simulator.command import main, run
from simulator.errors import SimulatorError
from simulator.faults import Fault, parse_fault
from simulator.http.server import serve
from simulator.options import SimulatorOptions

__all__ = ["Fault", "SimulatorError", "SimulatorOptions", "main", "parse_fault", "run", "serve"]
