"""The table of error codes on docs/submitting.md."""

from schemas.errors import EngineTimeout, ErrorCode
from schemas.published import error_table, with_error_table
from tests.support.submitting_page import text
from tests.unit.schemas.published.documents import DEFINITIONS, RENEW


def test_the_table_of_errors_on_the_page_is_what_the_code_says() -> None:
    assert error_table() in text(), RENEW
    assert with_error_table(text()) == text()
    assert with_error_table(text().replace(error_table(), "| an older | table |\n")) == text()


def test_every_code_has_a_meaning_and_is_retryable_or_not() -> None:
    assert all(code.meaning for code in ErrorCode)
    assert ErrorCode("engine_timeout") is ErrorCode.ENGINE_TIMEOUT
    assert f"{ErrorCode.ENGINE_TIMEOUT}" == "engine_timeout"
    rows = error_table().splitlines()[2:]
    assert len(rows) == len(ErrorCode)
    assert EngineTimeout.retryable
    assert f"| `engine_timeout` | {ErrorCode.ENGINE_TIMEOUT.meaning} | yes |" in error_table()
    assert f"| `cancelled` | {ErrorCode.CANCELLED.meaning} | no |" in error_table()
    assert {member["const"] for member in DEFINITIONS["ErrorCode"]["oneOf"]} == set(ErrorCode)
