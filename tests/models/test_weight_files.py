"""Files that are no weights are refused in one line, and no pickle runs code."""

import re

import pytest
import torch

from cdb_video.errors import WeightsError
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.weights import load_weights


def recognizer():
    return Recognizer(BACKBONES["r3d_10"](num_frames=8, crop_size=32), num_classes={"verb": 3})


class Payload:
    """An object that runs code when unpickled; never called here."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Payload()}, tmp_path / "evil.pth")

    with pytest.raises(WeightsError, match=r"evil\.pth: not readable as weights"):
        load_weights(recognizer(), tmp_path / "evil.pth")

    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")

    with pytest.raises(WeightsError, match=re.escape(name)) as refusal:
        load_weights(recognizer(), tmp_path / name)

    assert "\n" not in str(refusal.value)


def test_a_missing_file_and_a_file_without_tensors_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")

    with pytest.raises(WeightsError, match=r"missing\.pth: no such weights file"):
        load_weights(recognizer(), tmp_path / "missing.pth")
    with pytest.raises(WeightsError, match=r"empty\.pth: holds no named tensors"):
        load_weights(recognizer(), tmp_path / "empty.pth")


def test_a_small_file_of_terabytes_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(2**20, 2**20)}, tmp_path / "view.pth")

    with pytest.raises(WeightsError, match=r"view\.pth: weight is no plain tensor: \(1048576, "):
        load_weights(recognizer(), tmp_path / "view.pth")
