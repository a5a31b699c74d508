from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swiftune.cli.doctor import sections
from swiftune.recipes import doctor


@pytest.fixture
def offline_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No hub is asked, and the caches are empty."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "theirs"))
    return tmp_path


def test_the_command_reports_as_json(offline_home: Path) -> None:
    command = [sys.executable, "-m", "swiftune.cli.main", "doctor", "--as_json", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["versions"]["torch"] == torch.__version__
    assert report["device"]["memory_free"] > 0
    assert {hub["name"]: hub["offline"] for hub in report["hubs"]} == {"ModelScope": True, "Hugging Face": True}
    assert report["caches"][0] == {"name": "Swiftune", "path": str(offline_home / "ours"), "bytes": 0}


def test_every_section_has_rows_of_text(offline_home: Path) -> None:
    shown = sections(doctor.examine())
    assert list(shown) == ["Machine", "Dtypes", "Models and data", "Software", "Missing"]
    assert all(rows and all(isinstance(cell, str) and cell for row in rows for cell in row) for rows in shown.values())


def test_a_matrix_product_is_timed_by_its_operations() -> None:
    assert 1e8 < doctor.matmul_rate(torch.device("cpu"), "float32") < 1e15


def test_missing_and_untested_packages_come_with_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"peft": "0.1", "wandb": None}
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: have[name] if name in have else real(name))
    found = {problem["package"]: problem for problem in doctor.problems()}
    assert found["peft"]["state"].startswith("0.1, which is not tested")
    assert found["wandb"]["needed_for"] == "swift sft --report_to wandb"
    assert found["wandb"]["install"] == f"{sys.executable} -m pip install 'wandb>=0.19'"
    assert "torch" not in found


def test_every_extra_for_users_is_looked_for() -> None:
    extras = set(importlib.metadata.metadata("swiftune").get_all("Provides-Extra") or [])
    assert extras - {"test", "dev", "fuzz"} == set(doctor.EXTRAS)


def test_a_folder_is_as_large_as_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "one")
    assert 1000 <= doctor.folder_size(tmp_path) < 1500
    assert doctor.folder_size(tmp_path / "none") == 0
