"""Comparisons: what is planned, what a cell is, and that the same work is never done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdb_video.distributed import ONE_PROCESS
from cdb_video.errors import ConfigError, RunError
from cdb_video.experiments.compare import (
    CONTROL,
    Plan,
    _DataReader,
    finished,
    make_plan,
    run_cells,
)
from cdb_video.training.run_folder import RunFolder
from tests.tiny import tiny_values


def config_file(root: Path, output: Path, **sections: dict[str, Any]) -> Path:
    path = output / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values(root, output / "runs", **sections)))
    return path


def plan_of(path: Path, *overrides: str, **options: Any) -> Plan:
    return make_plan(path, overrides, **{"losses": ["cross_entropy", "cdb"], **options})


def events(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def compared(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two losses and the control at two seeds, run."""
    path = config_file(tiny_data, tmp_path_factory.mktemp("compared"), data={"in_memory": True})
    plan = plan_of(path, num_seeds=2)
    lines = list(run_cells(plan, ranks=ONE_PROCESS))
    assert len(lines) == 6
    assert lines[0].startswith("cell 1/6: cross_entropy, seed 0: done in")
    return plan


def test_every_cell_is_an_ordinary_run_with_a_test_report(compared: Plan) -> None:
    comparison = finished(compared)

    assert comparison.arms == ("cross_entropy", CONTROL, "cdb")
    assert comparison.references == ("cross_entropy", CONTROL)
    assert [comparison.seeds_of(arm) for arm in comparison.arms] == [[0, 1]] * 3
    assert {cell.report["split"] for cell in comparison.cells} == {"test"}
    assert all(cell.seconds_per_epoch > 0 for cell in comparison.cells)
    for name in ("config.yaml", "difficulty.csv", "checkpoints", "predictions_test.npz"):
        assert (compared.folder / "cdb" / "seed-1" / name).exists()


def test_the_arms_of_a_seed_start_alike_and_see_the_same_clips(compared: Plan) -> None:
    # Until its first measurement all weights of CDB are 1, and it is cross entropy bit for bit.
    first = {
        (arm, seed): events(compared.folder / arm / f"seed-{seed}", "train")[0]["loss"]
        for arm in ("cross_entropy", "cdb")
        for seed in (0, 1)
    }

    assert first["cross_entropy", 0] == first["cdb", 0]
    assert first["cross_entropy", 1] == first["cdb", 1]
    assert first["cross_entropy", 0] != first["cross_entropy", 1]


def test_the_control_trains_on_the_difficulty_set_too(compared: Plan) -> None:
    about = {
        arm.name: json.loads((compared.cell_folder(arm, 0) / "run.json").read_text())
        for arm in compared.arms
    }
    clips = {name: sum(run["classes"]["verb"]["train_counts"]) for name, run in about.items()}

    assert clips == {"cross_entropy": 12, "cdb": 12, CONTROL: 12 + 7}


def test_a_finished_cell_is_not_run_again(compared: Plan) -> None:
    assert list(run_cells(compared, ranks=ONE_PROCESS)) == []


def test_a_cell_that_another_process_holds_is_left_to_it(
    compared: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compared.folder / "cdb" / "seed-0"
    (folder / "cell.json").rename(folder / "kept.json")
    held = RunFolder(folder)
    try:
        assert list(run_cells(compared, ranks=ONE_PROCESS)) == []
    finally:
        held.close()
        (folder / "kept.json").rename(folder / "cell.json")
    assert "cdb, seed 0: another process is at it" in capsys.readouterr().out


def test_an_interrupted_cell_goes_on_where_it_stood(compared: Plan) -> None:
    folder = compared.folder / "cdb" / "seed-1"
    before = json.loads((folder / "report_test.json").read_text())
    (folder / "cell.json").unlink()
    (folder / "report_test.json").unlink()

    lines = list(run_cells(compared, ranks=ONE_PROCESS))

    assert [line.split(": done")[0] for line in lines] == ["cell 6/6: cdb, seed 1"]
    assert json.loads((folder / "report_test.json").read_text()) == before
    assert len(finished(compared).cells) == 6


def test_cells_of_another_configuration_are_refused_by_key(compared: Plan) -> None:
    path = Path(compared.about["config"])

    with pytest.raises(RunError, match=r"seed-0: .*optim\.lr=0\.003, and .* has 0\.5; .*--name"):
        plan_of(path, "optim.lr=0.5", num_seeds=2)
    assert plan_of(path, "data.num_workers=1", num_seeds=2).folder == compared.folder


def names(plan: Plan) -> list[str]:
    return [arm.name for arm in plan.arms]


def test_the_control_is_there_only_where_an_arm_reads_held_out_clips(
    tiny_data: Path, tmp_path: Path
) -> None:
    path = config_file(tiny_data, tmp_path)
    fed_by_training = plan_of(path, "loss.difficulty.source=train")
    without_cdb = plan_of(path, losses=["cross_entropy", "focal"])

    assert names(fed_by_training) == ["cross_entropy", "cdb"]
    assert names(without_cdb) == ["cross_entropy", "focal"]


def test_held_out_subjects_go_back_into_the_training_data_of_the_control(
    tiny_data: Path, tmp_path: Path
) -> None:
    held_out = {"val_split": "held_out", "hold_out_subjects": ["P1"]}
    plan = plan_of(config_file(tiny_data, tmp_path, data=held_out))

    data = plan.configs[CONTROL, 0].data
    assert (data.hold_out_subjects, data.val_split, data.train_split) == ((), None, "train")


def test_an_arm_is_anything_that_can_be_overridden(tiny_data: Path, tmp_path: Path) -> None:
    arms = ["cdb on bs=loss.name=cdb loss.base=balanced_softmax", "slow=optim.lr=1e-5"]
    plan = plan_of(config_file(tiny_data, tmp_path), losses=["ldam"], arms=arms, num_seeds=1)

    assert plan.configs["cdb on bs", 0].loss.base == "balanced_softmax"
    assert plan.configs["slow", 0].optim.lr == 1e-5
    assert plan.configs["ldam", 0].model.head_type == "cosine"
    assert plan.cell_folder(plan.arms[-1], 0).name == "seed-0"
    assert "cdb-on-bs" in {plan.cell_folder(arm, 0).parent.name for arm in plan.arms}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": []}, "--losses or --arm: nothing to compare"),
        ({"losses": ["cross_entropie"]}, r"loss\.name: .*got 'cross_entropie'"),
        ({"losses": ["cdb", "cdb"]}, "--arm cdb: two arms are written to cdb"),
        ({"arms": ["cdb_bs"]}, "--arm 'cdb_bs': must be NAME='section.key=value ...'"),
        ({"arms": ["x=lr"]}, "--arm 'x=lr': must be NAME="),
        ({"arms": ["x=optim.lrr=1"]}, r"optim\.lrr: no such key; did you mean 'lr'\?"),
    ],
)
def test_a_bad_arm_is_refused_in_one_line(
    tiny_data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(config_file(tiny_data, tmp_path), **options)


def test_without_a_test_split_there_is_nothing_to_compare_on(
    tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data\.test_split is null for cross_entropy"):
        plan_of(config_file(tiny_data, tmp_path), "data.test_split=null")


@pytest.mark.slow
def test_an_arm_that_diverges_is_a_finding_and_does_not_stop_the_others(
    tiny_data: Path, tmp_path: Path
) -> None:
    path = config_file(tiny_data, tmp_path, train={"epochs": 2}, optim={"name": "sgd"})
    plan = plan_of(
        path, losses=["cross_entropy"], arms=["wild=loss.name=focal optim.lr=1e30"], num_seeds=1
    )

    lines = list(run_cells(plan, ranks=ONE_PROCESS))

    assert [line.split(" in ")[0] for line in lines] == [
        "cell 1/2: cross_entropy, seed 0: done",
        "cell 2/2: wild, seed 0: failed",
    ]
    comparison = finished(plan)
    assert comparison.arms == ("cross_entropy",)
    assert comparison.notes[0].startswith("Failed: wild, seed 0: train.max_bad_steps=10: the loss")
    assert list(run_cells(plan, ranks=ONE_PROCESS)) == []


def test_an_option_that_a_loss_does_not_have_is_found_before_any_cell_is_run(
    tiny_data: Path, tmp_path: Path
) -> None:
    path = config_file(tiny_data, tmp_path)
    plan = plan_of(
        path, losses=["cross_entropy"], arms=['x=loss.name=focal "loss.options={gama: 1}"']
    )

    with pytest.raises(ConfigError, match=r"loss\.options\.gama: focal has no such option"):
        next(run_cells(plan, ranks=ONE_PROCESS))
    assert not plan.folder.exists()


def test_arms_with_other_clips_do_not_share_decoded_frames(tiny_data: Path, tmp_path: Path) -> None:
    path = config_file(tiny_data, tmp_path, data={"in_memory": True})
    arms = ["large=clip.short_side=24 clip.crop_size=24 loss.name=cross_entropy"]
    plan = plan_of(path, losses=["cross_entropy", "focal"], arms=arms, num_seeds=1)

    reader = _DataReader(ONE_PROCESS)
    small, focal, large = (reader.read(plan.configs[arm.name, 0]) for arm in plan.arms)

    assert small.memory is focal.memory
    assert small.memory is not large.memory
    assert large.memory is not None
    assert large.memory.short_side == 24
