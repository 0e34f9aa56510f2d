"""Chapter 7, the hub: ORG/NAME is downloaded once, only what is needed of it; without a network the answer is clear."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors

from chapters import ch07_hub
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch07_hub import model_folder

ROOT = Path(ch07_hub.__file__).parents[1]
COMMIT = "5" * 40


class Shelf:
    """Stands in for `snapshot_download`: a shelf of published files, and what has been fetched from it."""

    def __init__(self, published: dict[str, str], disk: Path):
        self.published, self.disk, self.asked, self.kept = published, disk, [], False

    def __call__(self, name: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only and not self.kept:
            raise errors.LocalEntryNotFoundError("not here")
        fetched = {file for file in self.published if any(Path(file).match(pattern) for pattern in allow_patterns)}
        for file in fetched:
            self.disk.joinpath(file).write_text(self.published[file])
        if not local_files_only:
            self.asked.append((name, fetched))
        return str(self.disk)


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """A hub that has one model with more files than are needed."""
    names = [*ch07_hub.TEXTS, "model-00001-of-00002.safetensors"]
    names += ["README.md", "pytorch_model.bin", "consolidated.safetensors"]
    shelf = Shelf({name: "{}" for name in names} | {"config.json": '{"model_type": "llama"}'}, tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", shelf)
    monkeypatch.setattr(ch07_hub, "_ask_hub", lambda name: None)
    monkeypatch.chdir(tmp_path)
    return shelf


def test_only_what_is_needed_is_downloaded_and_the_small_files_first(shelf):
    assert model_folder("org/name") == shelf.disk
    small = set(ch07_hub.TEXTS)
    assert shelf.asked == [("org/name", small), ("org/name", small | {"model-00001-of-00002.safetensors"})]


def test_a_model_that_is_on_this_disk_is_not_asked_for_again(shelf):
    shelf.kept = True
    assert model_folder(Path("org/name")) == shelf.disk and shelf.asked == []


def test_a_model_that_cannot_be_run_is_refused_before_its_numbers_are_downloaded(shelf):
    shelf.published["config.json"] = '{"model_type": "gpt2"}'
    with pytest.raises(ValueError, match="'org/name'.*gpt2.*llama"):
        model_folder("org/name")
    assert len(shelf.asked) == 1


def test_a_download_that_breaks_off_is_told_in_one_line(shelf, monkeypatch):
    def breaks(name, allow_patterns, local_files_only=False):
        raise errors.LocalEntryNotFoundError("a\nb") if local_files_only else OSError("line one\nline two")

    monkeypatch.setattr("huggingface_hub.snapshot_download", breaks)
    with pytest.raises(ConnectionError, match="broke off .*line one.*same command") as error:
        model_folder("org/name")
    assert "\n" not in str(error.value)


def test_a_folder_is_itself_and_a_slip_of_the_pen_never_reaches_the_network(shelf):
    (shelf.disk / "runs" / "mine").mkdir(parents=True)
    assert model_folder("runs/mine") == Path("runs/mine")
    for slip in ("runs/mien", "/nowhere/at/all", "name", "a/b/c", "../x", "./x", "org/na me", "", "org/", "a/../b"):
        if not Path(slip).is_dir():
            with pytest.raises(ValueError, match="ORG/NAME"):
                model_folder(slip)
    assert shelf.asked == []


# The library itself, and a hub made for it


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, for the files of one folder."""

    folder: Path
    served: list[str]

    def do_GET(self):
        """Tell of the model, list its files, or send one."""
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/tiny/tree/"):
            files = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": self.tag(file)}
                     for file in self.folder.iterdir()]
            self.send(json.dumps(files).encode())
        elif path in ("/api/models/org/tiny", "/api/models/org/tiny/revision/main"):
            self.send(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith("/org/tiny/resolve/"):
            file = self.folder / path.rsplit("/", 1)[1]
            if self.command == "GET":
                self.served.append(file.name)
            self.send(file.read_bytes(), {"ETag": f'"{self.tag(file)}"', "X-Repo-Commit": COMMIT})
        else:
            self.send(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET

    def tag(self, file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def send(self, body: bytes, headers: dict | None = None, code: int = 200) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub(tmp_path):
    """A hub on this machine that has one model, org/tiny, and a README nobody needs."""
    folder = tmp_path / "published"
    tokenizer = BPETokenizer.train("the cat sat on the mat. " * 9, 270)
    torch.manual_seed(5)
    sizes = {"vocab_size": 270, "d_model": 24, "num_layers": 2, "num_heads": 3, "d_ff": 31, "max_seq_len": 40}
    GPT(GPTConfig(**sizes)).save_pretrained(folder, end_token=tokenizer.eot_id)
    tokenizer.save(folder)
    (folder / "README.md").write_text("Nobody needs this.")
    handler = type("OneModel", (Hub,), {"folder": folder, "served": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def generate(address: str, home: Path, name: str = "org/tiny", offline: str = "0") -> subprocess.CompletedProcess:
    """Run `main.py generate --model` in a process whose hub has this address."""
    surroundings = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline,
                                 "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "main.py", "generate", "--model", name, "--prompt", "the cat", "--max-new-tokens", "5",
               "--temperature", "0"]
    return subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=600)


def test_generate_downloads_a_model_by_name_and_runs_it_later_without_a_network(hub, tmp_path):
    handler, address = hub
    first = generate(address, tmp_path / "home")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("the cat") and "(org/tiny speaks)" in first.stderr
    assert sorted(handler.served) == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                                      "tokenizer_config.json"]
    again = generate("http://127.0.0.1:1", tmp_path / "home", offline="1")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    folder = generate("http://127.0.0.1:1", tmp_path / "none", str(handler.folder))
    assert folder.stdout == first.stdout


def test_a_hub_that_refuses_and_one_without_the_model_end_in_one_line_each(hub, tmp_path):
    for address, name, words in (
        ("http://127.0.0.1:1", "org/tiny", "hf download org/tiny --local-dir"),
        (hub[1], "org/another", "no model 'org/another'"),
    ):
        result = generate(address, tmp_path / "home", name)
        assert result.returncode == 2 and result.stdout == ""
        assert words in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


def drip(server: socket.socket) -> None:
    """Answer one visitor letter by letter, each long before anybody's limit, and never come to an end."""
    with contextlib.suppress(OSError):
        visitor = server.accept()[0]
        visitor.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(500):
            visitor.sendall(b" ")
            time.sleep(0.05)


@pytest.mark.parametrize(("answer", "words"), [(None, "cannot be reached"), (drip, "no answer in 0.3 seconds")])
def test_a_hub_that_never_comes_to_an_end_is_given_up_after_a_moment(answer, words, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        if answer:
            threading.Thread(target=answer, args=(server,), daemon=True).start()
        monkeypatch.setattr(ch07_hub, "PATIENCE", 0.3)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(ConnectionError, match=f"{words}.*hf download org/tiny --local-dir FOLDER"):
            model_folder("org/tiny")


def test_offline_mode_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="OfflineModeIsEnabled.*hf download") as error:
        model_folder("org/tiny")
    assert "\n" not in str(error.value)
