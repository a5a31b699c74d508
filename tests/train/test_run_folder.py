from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swiftune.errors import OutputError
from swiftune.train.run_folder import create


def test_numbers_go_up_and_runs_started_at_once_get_one_each(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    first = create(out, add_version=True)
    assert re.fullmatch(r"v0-\d{8}-\d{6}", first.name)
    (out / "v7-20260101-000000").mkdir()
    assert create(out, add_version=True).name.startswith("v8-")
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: create(out, add_version=True), range(8)))
    assert len({run.name for run in runs}) == 8
    assert create(tmp_path / "b", add_version=False) == tmp_path / "b"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--output_dir .*file.* cannot be written"):
        create(tmp_path / "file" / "out", add_version=True)
