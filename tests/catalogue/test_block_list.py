from __future__ import annotations

from pathlib import Path

import polars
import pytest

from seqrec.catalogue.histories import read_block_list
from seqrec.errors import InputError, MissingInputError


def test_a_list_is_a_line_for_each_item_or_a_column(tmp_path: Path):
    (tmp_path / "block.txt").write_text("a b\n\n  17 \n")
    assert read_block_list(tmp_path / "block.txt") == ["a b", "17"]
    polars.DataFrame({"item_id": [3, None, 5], "why": ["x", "y", "z"]}).write_parquet(tmp_path / "b.parquet")
    assert read_block_list(tmp_path / "b.parquet") == [3, 5]


def test_what_is_no_list_is_refused(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"block='nowhere.txt' does not exist; give a file"):
        read_block_list("nowhere.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x80")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    polars.DataFrame({"song": [1]}).write_parquet(tmp_path / "c.parquet")
    for name in ("b.txt", "b.parquet", "c.parquet"):
        with pytest.raises(InputError, match=r"cannot be read as a list of item ids: .* with a column item_id"):
            read_block_list(tmp_path / name)
    polars.DataFrame({"item_id": [1.5]}).write_parquet(tmp_path / "d.parquet")
    with pytest.raises(InputError, match="column item_id is Float64; make it integers or strings"):
        read_block_list(tmp_path / "d.parquet")
