from __future__ import annotations

import pytest

from simulator.errors import RequestRejected
from simulator.requests.constraints import check_schema


def test_an_unknown_schema_type_is_rejected_as_in_vllm() -> None:
    with pytest.raises(RequestRejected, match="Grammar error: Invalid type: nonsense"):
        check_schema({"type": "object", "properties": {"a": {"type": "nonsense"}}})
