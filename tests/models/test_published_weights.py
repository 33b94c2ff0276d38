"""Names, paths and URLs to files; downloads from a server on this machine."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cdb_video.errors import WeightsError
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.weights import KNOWN_WEIGHTS, resolve_weights

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, counts requests, and breaks off files named "short"."""

    requests: list[str]

    def do_GET(self):
        self.server.requests.append(self.path)
        if "short" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            super().do_GET()

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def server(tmp_path):
    """(base URL, paths asked for) of a folder with a few copies of CONTENT."""
    folder = tmp_path / "served"
    (folder / "other").mkdir(parents=True)
    for name in ("w.pth", "other/w.pth", f"net-{SHA256[:8]}.pth", "net-00000000.pth"):
        (folder / name).write_bytes(CONTENT)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    httpd.requests = []
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", httpd.requests
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def resolve(name, cache):
    return resolve_weights(name, backbone="r3d_18", cache_dir=cache)


def test_a_path_is_itself(tmp_path):
    file = tmp_path / "mine.pth"
    file.write_bytes(CONTENT)

    assert resolve(str(file), tmp_path / "cache") == file
    assert not (tmp_path / "cache").exists()


def test_a_url_is_downloaded_once(tmp_path, server):
    url, requests = server

    first = resolve(f"{url}/w.pth", tmp_path / "cache")
    second = resolve(f"{url}/w.pth", tmp_path / "cache")

    assert first == second
    assert first.read_bytes() == CONTENT
    assert requests == ["/w.pth"]
    assert list((tmp_path / "cache").iterdir()) == [first]


def test_files_of_one_name_in_two_places_are_two_files(tmp_path, server):
    url, _ = server

    first = resolve(f"{url}/w.pth", tmp_path)
    second = resolve(f"{url}/other/w.pth", tmp_path)

    assert first != second
    assert first.name.endswith("w.pth")


@pytest.mark.parametrize("path", [f"w.pth#sha256={SHA256}", f"net-{SHA256[:8]}.pth"])
def test_a_right_checksum_is_accepted(tmp_path, server, path):
    assert resolve(f"{server[0]}/{path}", tmp_path / "cache").read_bytes() == CONTENT


@pytest.mark.parametrize("path", [f"w.pth#sha256={'0' * 64}", "net-00000000.pth"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(tmp_path, server, path):
    with pytest.raises(WeightsError, match=rf"SHA-256 begins {SHA256[:8]}"):
        resolve(f"{server[0]}/{path}", tmp_path / "cache")

    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_file_is_verified_again(tmp_path, server):
    url = f"{server[0]}/w.pth#sha256={SHA256}"
    resolve(url, tmp_path / "cache").write_bytes(b"damaged")

    with pytest.raises(WeightsError, match=r"w\.pth: SHA-256 begins .*delete the file"):
        resolve(url, tmp_path / "cache")


@pytest.mark.parametrize("path", ["short.pth", "missing.pth"])
def test_a_broken_download_is_refused_and_leaves_nothing(tmp_path, server, path):
    with pytest.raises(WeightsError, match=path):
        resolve(f"{server[0]}/{path}", tmp_path / "cache")

    assert list((tmp_path / "cache").iterdir()) == []


def test_a_server_that_does_not_answer_is_named(tmp_path, server):
    port = server[0].rpartition(":")[2]

    with pytest.raises(WeightsError, match="download failed"):
        resolve(f"https://127.0.0.1:{port}/w.pth", tmp_path)  # it speaks no TLS


@pytest.mark.parametrize("name", ["file:///etc/hostname", "ftp://host/w.pth", "s3://b/w.pth"])
def test_other_schemes_are_refused(tmp_path, name):
    with pytest.raises(WeightsError, match=r"not a path or an http\(s\) URL"):
        resolve(name, tmp_path)


def test_a_checksum_of_another_kind_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="8 to 64 digits"):
        resolve("http://127.0.0.1:9/w.pth#md5=abc", tmp_path)


def test_an_unknown_name_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(WeightsError, match=r"'imagenet' does not exist; .* kinetics400"):
        resolve("imagenet", tmp_path)
    with pytest.raises(WeightsError, match=r"'kinetics400' does not exist; .* slowfast_tiny"):
        resolve_weights("kinetics400", backbone="slowfast_tiny", cache_dir=tmp_path)


def test_known_weights_are_of_backbones_we_have():
    files = [weights for names in KNOWN_WEIGHTS.values() for weights in names.values()]

    assert len(files) > 20
    assert set(KNOWN_WEIGHTS) <= set(BACKBONES)
    assert all(weights.url.startswith("https://") for weights in files)
    assert all(weights.licence in ("Apache-2.0", "BSD-3-Clause") for weights in files)


def test_torchvisions_names_carry_their_checksum():
    assert KNOWN_WEIGHTS["r3d_18"]["kinetics400"].sha256 == "b3b3357e"
    assert KNOWN_WEIGHTS["slowfast_r50"]["kinetics400"].sha256 is None
