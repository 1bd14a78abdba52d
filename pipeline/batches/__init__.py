"""Jobs submitted together, for the bulk lane.

submit    store a batch that a program has, and publish its doorbells
files     submit a batch file: read as a stream, its first rows run while the rest is read
windows   cut the lines of a file into rows that are stored together
lines     a line is a job
reading   the lines of a file: compressions, encodings, sizes; source: what else may have lines
life      cancel and retry whole batches
output    what is settled, as it comes or in the order of the file
"""

from pipeline.batches.files import FileSubmitter, ReadSoFar
from pipeline.batches.source import LineSource
from pipeline.batches.submit import Batch, BatchDraft, BatchSubmitter, several

__all__ = ["Batch", "BatchDraft", "BatchSubmitter", "FileSubmitter", "LineSource", "ReadSoFar", "several"]
