"""Train a recogniser.

    torchrun tools/train.py                                  the demo: made-up kitchen clips, CPU
    torchrun tools/train.py configs/finetune.yaml data.root=my_videos
    torchrun --standalone --nproc_per_node=4 tools/train.py CONFIG.yaml optim.lr=0.02
    torchrun tools/train.py CONFIG.yaml run.name=NAME --resume           continue runs/NAME

Every key of the configuration can be given as section.key=value; --print-config shows them all.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

from cdb_video import build, distributed, experiments
from cdb_video.build_clips import choose_device, file_opener
from cdb_video.build_data import Data, read_data
from cdb_video.build_evaluation import write_report
from cdb_video.command_line import run_tool
from cdb_video.config import Config
from cdb_video.config_file import dump_config, load_config, recipe_note
from cdb_video.distributed import Ranks, leave_cores_to_workers, process_group
from cdb_video.errors import StoppedError
from cdb_video.evaluation.evaluate import EvaluationStoppedError
from cdb_video.evaluation.report import print_report
from cdb_video.evaluation.report_page import finish_report_page
from cdb_video.training.run_folder import mark_stopped
from cdb_video.training.run_log import Done, FileLog, SilentLog
from cdb_video.training.signals import StopRequest
from cdb_video.training.state import Position

DEMO = Path(__file__).parent.parent / "configs" / "demo.yaml"


def main() -> None:
    """Parse, build, train, report."""
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_config(config), end="")
        return
    ranks = Ranks.from_environment()
    distributed.check_restarts()
    device = choose_device(config, ranks)
    # All that can be wrong is looked at before the ranks meet: files on rank 0 alone.
    data = read_data(config, check_files=ranks.is_main)
    leave_cores_to_workers(config.data.num_workers)
    stop = StopRequest()
    with ExitStack() as stack:
        run = None
        if ranks.is_main:
            launch = distributed.restarted_launch()
            if not arguments.resume and launch is None:
                build.check(config, data, ranks=ranks)
            run, config = experiments.open_run(
                config,
                config_name=arguments.config.stem,
                resume=arguments.resume,
                launch=launch,
                vocabularies=data.train.vocabularies,
            )
            stack.callback(run.close)
            if arguments.resume or launch is not None:  # what it goes on from matters
                found = Path(run.resume_from) if run.resume_from else None
                build.check(config, data, ranks=ranks, resume_from=found)
            print_plan(config, data, ranks, str(device), run.path)
            print_note(arguments.config, config)
        timeout = timedelta(seconds=config.train.rank_timeout_s)
        stack.enter_context(process_group(ranks, device, timeout=timeout))
        # Not before: a rank that waits for others at the start is best ended at once.
        stack.enter_context(stop.listening())
        config = distributed.broadcast_object(config)
        trainer = build.build_trainer(config, data=data, ranks=ranks, run=run, stop=stop)
        epoch = trainer.state.position.epoch
        if run and epoch >= config.train.epochs:
            print(f"{run.path}: all {epoch} epochs are done; a larger train.epochs goes on")
        if run:
            run.begin()
        trainer.fit()
        distributed.barrier()  # the last checkpoint is on the disk
        report_on_splits(config, data, ranks, device, stop, at=trainer.state.position)
        if run:
            print(f"run folder: {run.path}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", type=Path, default=DEMO, help="default: the demo")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--resume", action="store_true", help="continue the run of this name")
    parser.add_argument("--print-config", action="store_true", help="print every key and stop")
    arguments = parser.parse_intermixed_args()
    if "=" in str(arguments.config) and not arguments.config.exists():  # of the demo
        arguments.overrides.insert(0, str(arguments.config))
        arguments.config = DEMO
    return arguments


def print_plan(config: Config, data: Data, ranks: Ranks, device: str, folder: Path) -> None:
    """What is about to be trained, on what."""
    sizes = {head: len(names) for head, names in data.train.vocabularies.items()}
    splits = {"train": data.train, "val": data.val, "test": data.test}
    counts = ", ".join(f"{len(split)} {role}" for role, split in splits.items() if split)
    heads = ", ".join(f"{head} ({number} classes)" for head, number in sizes.items())
    batch = config.train.global_batch_size
    print(
        f"{config.model.backbone}, {config.loss.name} on {heads}\n{counts} videos; {batch} clips a "
        f"step over {ranks.world_size} rank(s), lr {config.optim.lr:g}, on {device}\n{folder}",
        file=sys.stderr,
    )


def print_note(path: Path, config: Config) -> None:
    """What may be a slip in the learning rate."""
    note = recipe_note(path, config)
    if note:
        print(note, file=sys.stderr)


def report_on_splits(
    config: Config, data: Data, ranks: Ranks, device: object, stop: StopRequest, *, at: Position
) -> None:
    """Evaluate the selected checkpoint: once on the test split, else show its validation.

    Raises:
        StoppedError: a rank was asked to stop; training is done, and all of it on the disk.

    """
    role = "test" if data.test else "val" if data.val else None
    if role is None:
        return
    folder = Path(config.run.output_dir) / str(config.run.name)
    loaded = experiments.load_selected(folder, device=str(device))
    split = data.split(role)
    log = FileLog(folder, done=Done(at.epoch, at.step)) if ranks.is_main else SilentLog()
    agreement = distributed.Agreement()

    def keep_going(videos_done: int) -> bool:
        log.beat(f"evaluating {role}", epoch=at.epoch, step=at.step, done=videos_done)
        return not agreement.exchange(stop.received)[0]

    with closing(log):
        try:
            report = experiments.score(
                loaded,
                split,
                description=f"evaluating {role}",
                ranks=ranks,
                keep_going=keep_going,
            )
        except EvaluationStoppedError:
            reason = f"stopped while evaluating {role}, after training: --resume evaluates it again"
            log.write("stop", epoch=at.epoch, step=at.step, signal=stop.by)
            if ranks.is_main:
                mark_stopped(folder, reason)
            distributed.barrier()
            raise StoppedError(reason) from None
    if ranks.is_main:
        print(f"selected checkpoint: {loaded.checkpoint.name}")
        content = write_report(
            folder,
            report,
            config=config,
            classes=data.classes,
            split=split,
            role=role,
        )
        if data.val:
            finish_report_page(
                folder, "val", data.val.records, opener=file_opener(config, in_child=True)
            )
        print_report(content)
        print(f"report: {folder / f'report_{role}.html'}")


if __name__ == "__main__":
    run_tool(main)
