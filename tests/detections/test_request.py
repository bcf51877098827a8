"""What `--data.detections` may be is parsed once, into a typed value."""

import pytest

from pipeline.detections.request import DetectionRequest
from pipeline.errors import UsageError
from pipeline.lift import LiftDataModule
from pipeline.mocap import Synthetic


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("exact", "exact"),
        ("noisy", "noisy"),
        ("newest", "newest"),
        ("a/b.ckpt", "checkpoint"),
        ("file.json", "file"),
        ("folder", "folder"),
        ("cpn_ft_h36m_dbb", "archive"),
    ],
)
def test_each_kind_is_recognised(text, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.json").write_text("[]")
    (tmp_path / "folder").mkdir()
    request = DetectionRequest.parse(text)
    assert request.kind == kind
    assert str(request) == text
    assert request.is_projected == (kind in ("exact", "noisy"))


def test_a_file_called_like_a_word_does_not_hide_the_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exact").write_text("")
    assert DetectionRequest.parse("exact").kind == "exact"


def test_the_data_module_does_not_guess_which_checkpoint_is_the_newest():
    with pytest.raises(UsageError, match="only the command line resolves; give a checkpoint"):
        LiftDataModule(Synthetic(1, 1, 1), "newest")


def test_first_frame_and_person_are_only_for_files_of_other_tools(tmp_path):
    file = tmp_path / "file.json"
    file.write_text("[]")
    request = DetectionRequest.parse(str(file), first_frame=1, person=7)
    assert (request.first_frame, request.person) == (1, "7")
    with pytest.raises(UsageError, match="person is 7, and detections are exact"):
        DetectionRequest.parse("exact", person=7)
    with pytest.raises(UsageError, match="first_frame is -1"):
        DetectionRequest.parse(str(file), first_frame=-1)
