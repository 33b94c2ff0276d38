import json
import subprocess
import sys
from pathlib import Path

import pytest

from cdb_video.errors import RunError
from cdb_video.training.run_folder import RunFolder, choose_run_folder


def test_without_a_name_a_run_takes_the_next_free_number(tmp_path: Path) -> None:
    for name in ("demo-1", "demo-9", "demo-10", "demo-x", "other-30"):
        (tmp_path / name).mkdir()

    assert choose_run_folder(tmp_path, None, config_name="demo", resume=False).name == "demo-11"


def test_resume_without_a_name_means_the_newest_run_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "demo-2").mkdir()

    assert choose_run_folder(tmp_path, None, config_name="demo", resume=True).name == "demo-2"
    assert choose_run_folder(tmp_path, None, config_name="new", resume=True).name == "new-1"


def test_a_named_run_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    # A folder in which nothing has begun, such as a failed start leaves, is no run.
    assert choose_run_folder(tmp_path, "mine", config_name="demo", resume=False).name == "mine"
    (tmp_path / "mine" / "config.yaml").touch()

    with pytest.raises(RunError, match=r"run\.name=mine.*exists; add --resume"):
        choose_run_folder(tmp_path, "mine", config_name="demo", resume=False)
    assert choose_run_folder(tmp_path, "mine", config_name="demo", resume=True).name == "mine"


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path\n"
        "from cdb_video.training.run_folder import RunFolder\n"
        "from cdb_video.errors import RunError\n"
        "try: RunFolder(Path(sys.argv[1]))\n"
        "except RunError as error: print(error)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True
    )

    assert "another process is writing to this run" in done.stdout
    run.close()
    RunFolder(run.path).close()


def test_what_a_killed_writer_left_half_written_is_swept(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    gone = 2**22 + 1  # above the largest process id of Linux
    for name in (f".metrics.tmp{gone}.jsonl", f".predictions_val.tmp{gone}.npz", "metrics.jsonl"):
        (run / name).touch()

    RunFolder(run).close()

    assert {path.name for path in run.iterdir()} == {".lock", "checkpoints", "metrics.jsonl"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")

    with pytest.raises(RunError, match=r"runs/demo-1: could not be written \(Not a directory\)"):
        choose_run_folder(tmp_path / "runs", None, config_name="demo", resume=False)
    with pytest.raises(RunError, match=r"runs/mine: could not be written \(Not a directory\)"):
        RunFolder(tmp_path / "runs" / "mine")


def test_run_json_tells_versions_command_and_classes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")

    run.write_config("run: {}\n")
    run.write_about(classes={"verb": {"names": ["open"]}})

    about = json.loads((run.path / "run.json").read_text())
    assert about["versions"]["torch"].startswith("2.")
    assert about["command"] == sys.argv
    assert about["classes"] == {"verb": {"names": ["open"]}}
    assert (run.path / "config.yaml").read_text() == "run: {}\n"
    run.close()


def begun(folder: Path, launch: str | None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "run.json").write_text(json.dumps({"launch": launch}))
    return folder


def test_ranks_that_are_started_again_go_on_with_the_run_of_their_launch_alone(
    tmp_path: Path,
) -> None:
    mine = begun(tmp_path / "demo-2", "mine")
    begun(tmp_path / "demo-3", "another")
    theirs = begun(tmp_path / "named", "another")

    def choose(name: str | None, launch: str, *, resume: bool = False) -> Path:
        return choose_run_folder(tmp_path, name, config_name="demo", resume=resume, launch=launch)

    assert choose(None, "mine") == mine
    assert choose(None, "new") == tmp_path / "demo-4"
    # Refused at the first start, and not taken up at the second.
    with pytest.raises(RunError, match=r"run\.name=named: .* exists; add --resume"):
        choose("named", "mine")
    assert choose("named", "another") == theirs
    assert choose("named", "mine", resume=True) == theirs
