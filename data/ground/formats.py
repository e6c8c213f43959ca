"""Which formats of tables there are, and what a file's ending says."""

from typing import Literal

Format = Literal["jsonl", "json", "csv", "xlsx", "parquet", "interleaved", "wiki_pages", "choices", "huggingface"]


ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".xlsx": "xlsx",
    ".xlsm": "xlsx", ".parquet": "parquet",
}  # fmt: skip
"""Of tables; the text formats may be packed (`.csv.gz`)."""


SAVED_AS = {
    **dict.fromkeys((".xls", ".xlsb", ".ods", ".numbers"), "save it as .xlsx"),
    **dict.fromkeys(
        (".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z", ".rar", ".tar", ".tgz"), "unpack it, or pack the file itself with gzip (.gz)"
    ),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro", ".h5", ".pkl", ".pickle", ".db", ".sqlite"), "save it as .parquet or .jsonl"),
}
"""Tables that no reader knows, by their ending, and what to do."""


def format_of(name: str) -> Format | None:
    """What a file's ending says it is."""
    lower = name.lower()
    plain = lower.removesuffix(".gz")
    found = ENDINGS.get(plain[plain.rfind(".") :]) if "." in plain else None
    return None if found in ("parquet", "xlsx") and plain != lower else found
