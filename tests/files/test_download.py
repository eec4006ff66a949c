import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.files.download import Download, fetch_once

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Serves one file on the loopback; returns its address."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "w.pth").write_bytes(CONTENT)
    httpd = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))
    )
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_a_file_is_fetched_once(server, tmp_path):
    wanted, said = Download(f"{server}/w.pth", "w.pth", DIGEST, len(CONTENT)), []
    fetch = partial(fetch_once, wanted, "give it", tell=said.append, cache=tmp_path / "cache")
    path = fetch()
    assert path.read_bytes() == CONTENT
    (tmp_path / "served" / "w.pth").unlink()
    assert fetch() == path
    assert len(said) == 1 and "Downloading http://127.0.0.1" in said[0]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="remove it"):
        fetch()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "sent another file .*: give it$"),
        ({"num_bytes": 10}, "sends more than 10 bytes: give it$"),
        ({"url": "http://127.0.0.1:9/w.pth"}, r"could not be downloaded \(.*refused.*\): give it$"),
    ],
)
def test_other_files_and_no_network_are_errors(server, tmp_path, change, message):
    wanted = Download(f"{server}/w.pth", "w.pth", DIGEST, len(CONTENT))._replace(**change)
    with pytest.raises(UserError, match=message):
        fetch_once(wanted, "give it", tell=lambda text: None, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_file_names_the_reason(server, tmp_path):
    wanted = Download(f"{server}/other.pth", "w.pth", DIGEST, len(CONTENT))
    with pytest.raises(UserError, match=r"could not be downloaded .*not found"):
        fetch_once(wanted, "give it", tell=lambda text: None, cache=tmp_path / "cache")
