"""What a short run leaves in TensorBoard."""

from pathlib import Path

import pytest

from cdb_video.build import build_trainer
from cdb_video.distributed import Ranks
from cdb_video.experiments import open_run
from tests.tiny import tiny_config


@pytest.mark.slow
def test_the_last_validation_is_shown_however_soon_it_comes(
    tiny_data: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tiny_data, tmp_path, run={"trackers": ["tensorboard"]})
    run, named = open_run(config, config_name="tiny", resume=False)
    trainer = build_trainer(named, ranks=Ranks(), run=run)

    trainer.fit()
    run.close()

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    shown = [event.step for event in events.Images("val/verb/confusion")]
    assert shown == [trainer.state.position.step // 2, trainer.state.position.step]
