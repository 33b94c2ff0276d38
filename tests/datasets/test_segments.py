import pytest

from cdb_video.datasets.annotation_files import Row
from cdb_video.datasets.segments import FrameNumbers, read_segment
from cdb_video.errors import DataError


def row(**cells: str) -> Row:
    return Row("a.csv:2", cells)


@pytest.mark.parametrize(
    ("cells", "first", "expected"),
    [
        ({"start_frame": "30", "stop_frame": "60"}, 0, ("@30-60", 3.0, 6.0)),
        ({"start_frame": "30", "last_frame": "59"}, 0, ("@30-59", 3.0, 6.0)),
        # One frame: the first, counted from 1.
        ({"start_frame": "1", "last_frame": "1"}, 1, ("@1-1", 0.0, 0.1)),
        (
            {"start_frame": "00011.jpg", "stop_frame": "00021.JPG"},
            1,
            ("@00011.jpg-00021.JPG", 1, 2),
        ),
        ({"start_frame": "frame_0000000010.png"}, 0, ("@frame_0000000010.png-", 1.0, None)),
        ({"last_frame": "9"}, 0, ("@-9", None, 1.0)),
        # Seconds come first.
        ({"start_s": "1", "stop_s": "2", "start_frame": "x"}, 0, ("@1-2", 1.0, 2.0)),
        ({"start_s": "", "last_frame": ""}, 0, ("", None, None)),
    ],
)
def test_frames_become_seconds(
    cells: dict[str, str], first: int, expected: tuple[str, float | None, float | None]
) -> None:
    segment = read_segment(row(**cells), FrameNumbers(fps=10, first=first))

    assert (segment.times, segment.start_s, segment.stop_s) == expected


@pytest.mark.parametrize(
    ("cells", "first", "expected"),
    [
        (
            {"stop_frame": "5", "last_frame": "4"},
            0,
            "stop_frame '5' (exclusive) and last_frame '4'",
        ),
        ({"start_frame": "5", "last_frame": "4"}, 0, "'5' to '4': expected 0 <= start <= last"),
        ({"start_frame": "0", "stop_frame": "4"}, 1, "'0' to '4': expected 1 <= start < stop"),
        ({"start_frame": "clip_2_17.jpg"}, 0, "'clip_2_17.jpg' to '' are not whole frame numbers"),
        ({"start_frame": "12.5"}, 0, "'12.5' to '' are not whole frame numbers"),
        ({"start_frame": "-3.jpg"}, 4, "expected 4 <= start < stop"),
    ],
)
def test_bad_frames_are_refused(cells: dict[str, str], first: int, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        read_segment(row(**cells), FrameNumbers(fps=10, first=first))

    assert str(caught.value).startswith("a.csv:2: ")
    assert expected in str(caught.value)
