"""The versions that are printed, and the known bad ones among them."""

from __future__ import annotations

import platform

import av
import pytest
import torch

from cdb_video.prepare.env import find_versions, find_warnings, main

GOOD = {
    "torch": "2.12.1+cu130",
    "cuDNN": "9.15.0",
    "oneDNN": "3.12.0",
    "FFmpeg of PyAV": "8.1.2",
    "FFmpeg of torchcodec": "7.1.5",
}


def test_versions_are_those_of_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    versions = find_versions()

    assert versions["Python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert versions["FFmpeg of PyAV"] == av.ffmpeg_version_info
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["Python", "system"]
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(lines) == len(versions) + len(warnings)


def test_decords_ffmpeg_is_read_out_of_its_files() -> None:
    decord = pytest.importorskip("decord")
    assert decord.__version__ == "0.6.0"

    versions = find_versions()

    assert (versions["decord"], versions["FFmpeg of decord"]) == ("0.6.0", "4.1.6")
    assert any(line.startswith("FFmpeg of decord 4.1.6: ") for line in find_warnings(versions))


def test_good_versions_give_no_warning() -> None:
    assert find_warnings(GOOD) == []


@pytest.mark.parametrize(
    ("part", "version", "sources"),
    [
        ("torch", "2.5.1", ["CVE-2025-32434", "CVE-2026-24747"]),
        ("torch", "2.9.0+cu128", ["CVE-2026-24747", "166122"]),
        ("torch", "2.9.1", ["CVE-2026-24747"]),
        ("cuDNN", "9.8.0", ["163539"]),
        ("cuDNN", "9.10.2", ["163539", "167024"]),
        ("cuDNN", "9.14.0", ["167024"]),
        ("oneDNN", "3.13.3", ["PyTorch 2.15.0"]),
        ("FFmpeg of PyAV", "7.1.4", ["CVE-2026-8461"]),
        ("FFmpeg of PyAV", "8.1.1", ["CVE-2026-8461"]),
        ("FFmpeg of torchcodec", "6.1.2", ["CVE-2026-8461"]),
    ],
)
def test_a_known_bad_version_is_told_with_its_source(
    part: str, version: str, sources: list[str]
) -> None:
    lines = find_warnings(GOOD | {part: version})

    assert len(lines) == len(sources)
    for line, source in zip(lines, sources, strict=True):
        assert line.startswith(f"{part} {version}: ")
        assert source in line
