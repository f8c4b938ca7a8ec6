"""How many processes a command becomes."""

import pytest
from helpers.refusals import refused

from scalekd.cli.main import main
from scalekd.distributed.launch import check_devices


def test_fewer_than_one_device_is_refused() -> None:
    with refused("devices is 0", "1 or more"):
        check_devices(0)


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    check_devices(4)
    with refused("devices is 8", "4 GPUs", "torchrun"):
        check_devices(8)


def test_the_command_line_refuses_before_it_starts_any(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--devices", "0"])
    assert ended.value.code == 2
    assert "devices is 0" in capsys.readouterr().err
