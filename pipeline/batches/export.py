"""The output of a batch as a file: JSON Lines as OpenAI writes them, or a table as CSV, Parquet or a spreadsheet."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from pipeline.batches.output import output_line
from pipeline.files import OutputFile
from pipeline.store.batch_output import OutputRow
from schemas.errors import UnwritableFile

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # without it a spreadsheet takes UTF-8 for something else
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SHEET_ROWS = 1_000_000
_CELL_CHARACTERS = 32_767
_COLUMNS: dict[str, type] = {
    "line": int,
    "custom_id": str,
    "state": str,
    "kind": str,
    "label": str,
    "confidence": float,
    "score": float,
    "text": str,
    "code": str,
    "message": str,
    "model": str,
    "prompt_tokens": int,
    "completion_tokens": int,
    "cached": bool,
    "simulated": bool,
    "attempts": int,
    "queue_wait_seconds": float,
    "engine_seconds": float,
    "total_seconds": float,
    "settled_at": str,
    "job_id": int,
    "answer": str,
}


def record_of(row: OutputRow) -> dict[str, Any]:
    """Return a row as the columns of a table; `answer` is its result as JSON, `text` what a person reads of it."""
    return {
        "line": row.position + 1,
        "custom_id": row.custom_id,
        "state": row.state,
        "kind": row.kind,
        "label": row.label,
        "confidence": row.confidence,
        "score": row.score,
        "text": _text(row),
        "code": row.code,
        "message": row.message,
        "model": row.model,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "cached": row.cached_from is not None,
        "simulated": bool(row.simulated),
        "attempts": row.attempts,
        "queue_wait_seconds": row.queue_wait_seconds,
        "engine_seconds": row.engine_seconds,
        "total_seconds": row.total_seconds,
        "settled_at": row.settled_at.isoformat() if row.settled_at else None,
        "job_id": row.job_id,
        "answer": row.answer.decode() if row.answer is not None else None,
    }


def _text(row: OutputRow) -> str | None:
    if row.answer is None or row.label is not None:
        return None
    result = orjson.loads(row.answer)
    if row.kind != "completion":
        found: str | None = result.get("text") or result.get("code")
        return found
    message = result["body"]["choices"][0]["message"]
    calls = message.get("tool_calls")
    return message.get("content") or (orjson.dumps(calls).decode() if calls else None)


class Export(Protocol):
    """Writes rows to a file."""

    def write(self, rows: Sequence[OutputRow]) -> None:
        """Write rows."""
        ...

    def close(self) -> None:
        """Write what is left. Without it the file is not whole."""
        ...


class _Lines:
    def __init__(self, target: OutputFile) -> None:
        self._target = target

    def write(self, rows: Sequence[OutputRow]) -> None:
        lines = b"".join(output_line(row) for row in rows if row.state == "succeeded")
        if lines:
            self._target.write_bytes(lines)

    def close(self) -> None:
        """Nothing is left."""


class _Csv:
    def __init__(self, target: OutputFile) -> None:
        self._target = target
        target.write_bytes(_BYTE_ORDER_MARK + _csv([list(_COLUMNS)]))

    def write(self, rows: Sequence[OutputRow]) -> None:
        records = [record_of(row) for row in rows]
        self._target.write_bytes(_csv([[_cell(record[name]) for name in _COLUMNS] for record in records]))

    def close(self) -> None:
        """Nothing is left."""


def _csv(rows: list[list[Any]]) -> bytes:
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return written.getvalue().encode()


def _cell(value: Any) -> Any:
    """Return a value of which no spreadsheet makes a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


class _Parquet:
    def __init__(self, target: OutputFile) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        types = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
        self._schema = pa.schema([(name, types[kind]) for name, kind in _COLUMNS.items()])
        self._sink = _Sink(target)
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._batch = pa.RecordBatch

    def write(self, rows: Sequence[OutputRow]) -> None:
        if rows:
            self._writer.write_batch(self._batch.from_pylist([record_of(row) for row in rows], schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _Sink(io.RawIOBase):
    """A file of ours for libraries that write by themselves; its position only grows."""

    def __init__(self, target: OutputFile) -> None:
        self._target = target
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = bytes(data)
        self._target.write_bytes(content)
        self._written += len(content)
        return len(content)

    def tell(self) -> int:
        return self._written


class _Sheets:
    def __init__(self, target: OutputFile) -> None:
        import xlsxwriter

        self._target = target
        self._content = io.BytesIO()
        options = {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "in_memory": False}
        self._book = xlsxwriter.Workbook(self._content, options)
        self._sheet: Any = None
        self._row = self._sheets = 0

    def write(self, rows: Sequence[OutputRow]) -> None:
        for row in rows:
            if self._sheet is None or self._row > _SHEET_ROWS:
                self._begin()
            record = record_of(row)
            for column, name in enumerate(_COLUMNS):
                value = record[name]
                if isinstance(value, str):
                    self._sheet.write_string(self._row, column, value[:_CELL_CHARACTERS])
                elif isinstance(value, bool):
                    self._sheet.write_boolean(self._row, column, value)
                elif value is not None:
                    self._sheet.write_number(self._row, column, value)
            self._row += 1

    def _begin(self) -> None:
        self._sheets += 1
        self._sheet = self._book.add_worksheet("rows" if self._sheets == 1 else f"rows {self._sheets}")
        self._sheet.freeze_panes(1, 2)
        for column, name in enumerate(_COLUMNS):
            self._sheet.write_string(0, column, name)
        self._row = 1

    def close(self) -> None:
        if self._sheet is None:
            self._begin()
        self._book.close()
        self._target.write_bytes(self._content.getvalue())


_EXPORTS: dict[str, type[Any]] = {".jsonl": _Lines, ".csv": _Csv, ".parquet": _Parquet, ".xlsx": _Sheets}


def export_for(path: Path) -> type[Any]:
    """Return what writes a file of this name; what is no table is written as JSON Lines.

    Raises:
        UnwritableFile: it takes packages that are not installed.
    """
    found = _EXPORTS.get(path.suffix.lower(), _Lines)
    try:
        if found is _Parquet:
            import pyarrow  # noqa: F401
        if found is _Sheets:
            import xlsxwriter  # noqa: F401
    except ImportError:
        raise UnwritableFile(
            f"--out: {path.suffix} files need more packages: pip install 'yyc3-ai-call[reports]'"
        ) from None
    return found
