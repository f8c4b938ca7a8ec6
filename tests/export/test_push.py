"""What is pushed to the Hub: against a small server on this machine that speaks its calls."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from huggingface_hub import ModelCard, constants

from scalekd.cli.main import main
from scalekd.export.push import push
from scalekd.networks.student import export_student

LINEAGE = {
    "method": "scalekd",
    "seed": 4,
    "teacher": "swin_large_patch4_window7_224",
    "teacher_weights": "pretrained from hub timm/swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "teacher_sha256": "ab" * 32,
    "teacher_license": "mit",
    "data": "photos",
    "training_images": 100,
    "validation_images": 20,
    "recipe": {"epochs": 3},
    "versions": {"torch": "2.15.0"},
    "step": 300,
    "top1": 0.75,
}


COMMIT = "https://huggingface.co/ann/student/commit/" + "0" * 40


class Hub(ThreadingHTTPServer):
    """A hub that keeps the files of commits in memory; `taken` are repositories that exist."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.taken: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer a-token":
            self.answer({"error": "no"}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            status = 409 if repo in self.server.taken else 200
            self.answer({"url": f"{self.server.url}/{repo}"}, status)
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]
            self.answer({"files": files})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/ann/student/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": COMMIT})
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        self.answer({"id": "ann/student", "siblings": [], "sha": "0" * 40})

    def answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "a-token")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def student(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    export_student(model, tmp_path / "student", {"num_classes": 3}, ("a", "b", "c"), LINEAGE)
    (tmp_path / "student" / "notes.txt").write_text("private")
    return tmp_path / "student"


def test_the_hub_gets_exactly_what_a_dry_run_writes(
    student: Path, hub: Hub, tmp_path: Path
) -> None:
    pushed = push(student, "ann/student")
    assert pushed.place == f"{hub.url}/ann/student"
    dry = push(student, "ann/student", tmp_path / "dry")
    written = {file.name: file.read_bytes() for file in (tmp_path / "dry").iterdir()}
    assert written == hub.files
    assert sorted(written) == ["README.md", "config.json", "model.safetensors"]
    assert dry.files == pushed.files == {name: len(b) for name, b in written.items()}
    card = ModelCard.load(tmp_path / "dry" / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_name) == (0.75, "photos")
    for piece in ("swin_large", "ab" * 32, "| mit |", "75.00%", "torch 2.15.0", "4, 300"):
        assert piece in card.text, piece
    loaded = timm.create_model(f"local-dir:{tmp_path / 'dry'}", pretrained=True)
    assert loaded.num_classes == 3


def test_a_repository_that_exists_is_only_updated_when_asked(student: Path, hub: Hub) -> None:
    hub.taken.add("ann/student")
    with refused("'ann/student' exists", "--add_commit true"):
        push(student, "ann/student")
    assert hub.files == {}
    push(student, "ann/student", add_commit=True)
    assert "model.safetensors" in hub.files


def test_a_token_that_the_hub_refuses_is_one_line(
    student: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "another")
    with refused("refuses 'ann/student'", "token"):
        push(student, "ann/student")
    assert hub.files == {}


def test_without_network_or_login_the_push_is_refused(
    student: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-token")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with refused("the upload to http://127.0.0.1:9 failed", "--dry_run"):
        push(student, "ann/student")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with refused("no login", "hf auth login"):
        push(student, "ann/student")


@pytest.mark.parametrize(
    ("repo", "piece"),
    [
        ("student", "USER/NAME"),
        ("a/b/c", "a/b/c"),
        ("ann/a b", "ann/a b"),
        ("a--b/c", "--"),
    ],
)
def test_names_that_are_no_repository_are_refused(repo: str, piece: str, tmp_path: Path) -> None:
    with refused("repo is", piece):
        push(tmp_path, repo, tmp_path / "dry")


def test_folders_that_are_no_student_are_refused(student: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused("empty", "config.json"):
        push(tmp_path / "empty", "ann/student", tmp_path / "dry")
    weights = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with refused("model.safetensors"):
        push(student, "ann/student", tmp_path / "dry")
    (student / "model.safetensors").rename(student / "pytorch_model.bin")
    with refused("no model.safetensors", "scalekd export"):
        push(student, "ann/student", tmp_path / "dry")
    with refused("student", "exists"):
        push(student, "ann/student", student)
    assert not (tmp_path / "dry").exists()


def test_the_command_takes_its_options(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = str(tmp_path / "dry")
    main(["push", str(student), "--repo", "ann/student", "--dry_run", dry, "--add_commit", "true"])
    printed = capsys.readouterr().out
    assert f"{dry}: would be uploaded" in printed
    assert "model.safetensors" in printed
