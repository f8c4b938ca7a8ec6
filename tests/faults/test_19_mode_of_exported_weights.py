"""The exported weights could be read by their owner alone, whatever the umask, and others were told
that there is no such file."""

import encodings.idna  # noqa: F401 that nobody cannot import later
import os
import stat
from pathlib import Path

import pytest
from helpers.refusals import refused
from helpers.small_models import resnet

from scalekd.networks import build_model
from scalekd.networks.student import export_student


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_exported_weights_have_the_mode_of_the_umask(
    umask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        export_student(resnet(), tmp_path / "student", {})
    finally:
        os.umask(before)
    files = list((tmp_path / "student").iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}
    assert {file.name for file in files} == {"config.json", "model.safetensors"}


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_a_reader_without_permission_is_told_so(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    export_student(resnet(), tmp_path / "student", {})
    (tmp_path / "student").chmod(0o755)
    (tmp_path / "student" / "model.safetensors").chmod(0o600)
    os.seteuid(65534)
    try:
        with refused("model.safetensors", "no permission to read it"):
            build_model(f"local-dir:{tmp_path}/student", "pretrained")
    finally:
        os.seteuid(0)
