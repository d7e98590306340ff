"""`fastdiff tune` on the GPU that is here."""

import pytest
import torch

from fastdiff import cli

pytestmark = pytest.mark.gpu


def test_a_tuned_table_is_written_and_read(monkeypatch, tmp_path, capsys):
    from fastdiff.ops.triton import blocks

    monkeypatch.setenv("FASTDIFF_HOME", str(tmp_path))
    assert cli.main(["tune"]) == 0
    assert "written to" in capsys.readouterr().out
    blocks.check(blocks.read(torch.cuda.get_device_name()))
    assert len(list(tmp_path.iterdir())) == 1
