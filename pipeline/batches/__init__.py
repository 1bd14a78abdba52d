"""Jobs submitted together, for the bulk lane.

submit  store a batch and publish its doorbells
"""

from pipeline.batches.submit import Batch, BatchDraft, BatchSubmitter, several

__all__ = ["Batch", "BatchDraft", "BatchSubmitter", "several"]
