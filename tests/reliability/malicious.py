"""Row 18: malicious inputs neither run anything nor reach outside of the data's folder."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.reliability.attack_files import archives, bombs, cifar_batches, pickles, yamls
from tests.reliability.attack_paths import paths, playlists
from tests.reliability.attacks import Attack, Place, attempt
from tests.reliability.outcome import Outcome, Row

KINDS = {"pickle": 10, "YAML": 4, "path": 20, "playlist": 14, "archive": 6, "bomb": 4}


def attacks() -> list[Attack]:
    """All of them; as many of each kind as the table says."""
    found = [*pickles(), *cifar_batches(), *yamls(), *paths(), *playlists(), *archives(), *bombs()]
    if Counter(attack.kind for attack in found) != KINDS:
        raise AssertionError(Counter(attack.kind for attack in found))
    return found


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Every attack once, whatever the count and the seed."""
    failures = []
    refused = 0
    with counting_server() as (url, hits):
        for number, attack in enumerate(attacks()):
            name = f"{attack.kind}, {attack.name}"
            place = Place(folder / str(number), url)
            place.make()
            given = attack.make(place)
            trial = attempt(attack.package, given, place, lambda: len(hits))
            if trial.reached:
                failures.append(f"{name}: {trial.how}")
            elif not trial.refused:
                failures.append(f"{name}: not refused in one line: {trial.how}")
            refused += trial.refused
            proof = attempt(attack.careless, given, place, lambda: len(hits))
            if not proof.reached:
                failures.append(f"{name}: proves nothing: a careless reader {proof.how}")
            shutil.rmtree(place.folder)
    return Outcome(len(attacks()), tuple(failures), {"refused in one line": refused})


@contextmanager
def counting_server() -> Iterator[tuple[str, list[str]]]:
    """An address of this machine, and the paths that were asked of it."""
    hits: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *arguments: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", hits
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


ROW = Row(
    name="malicious",
    promise="no malicious input runs anything, reads outside of the data's folder, or fills the "
    "memory; each is refused in one line, and a careless reader falls for each",
    measure=measure,
    quick=58,
    full=58,
)
