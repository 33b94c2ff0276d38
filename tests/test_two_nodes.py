"""Two torchrun agents that meet over the network train as one agent with two ranks."""

from pathlib import Path

import pytest

from tests.reliability.jobs import ForkedJob, free_port, make_data, torchrun, write_config
from tests.states import differences, state_at


@pytest.mark.slow
def test_two_agents_of_one_rank_end_as_one_of_two(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", train=24)
    together = write_config(data, tmp_path / "together")
    apart = write_config(data, tmp_path / "apart")
    options = ["--nnodes=2", "--rdzv_id=two", "--rdzv_backend=c10d"]
    options.append(f"--rdzv_endpoint=127.0.0.1:{free_port()}")

    agents = [
        torchrun([str(apart)], num_ranks=1, output=tmp_path / f"{node}.txt", options=options)
        for node in range(2)
    ]
    for agent in agents:
        agent.wait(120)
    ForkedJob([str(together)], num_ranks=2, folder=tmp_path / "log").wait()

    states = [state_at(tmp_path / name / "tiny", 4) for name in ("apart", "together")]
    assert differences(*states) == []
    assert len(states[0]["ranks"]) == 2
