"""Install a wheel into an environment of its own, and use it from an empty folder.

python tests/package/try_wheel.py dist/scalekd-0.1.0-py3-none-any.whl

Only the wheel is installed there. Its dependencies, which take gigabytes, are read from the
environment that runs this script; the package itself is not, because an editable installation is
not followed.
"""

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

UV = Path(sys.executable).parent / "uv"
WHERE = "import scalekd; print(scalekd.__file__)"
TEACHER = "import timm, scalekd; timm.create_model('scalekd_digits_swin', pretrained=True)"
STUDENT = "import timm; timm.create_model('local-dir:run/student', pretrained=True)"


def run(*command: str | Path, folder: Path) -> str:
    print("$", Path(command[0]).name, *command[1:], flush=True)
    ended = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, check=False)
    if ended.returncode:
        sys.exit(f"try_wheel: the command ended with {ended.returncode}")
    return ended.stdout


def main(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = folder / "environment"
        run(UV, "venv", "--quiet", "--python", sys.executable, environment, folder=folder)
        python = environment / "bin" / "python"
        run(UV, "pip", "install", "--quiet", "--no-deps", "--python", python, wheel, folder=folder)
        packages = next((environment / "lib").glob("python*/site-packages"))
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

        place = run(python, "-c", WHERE, folder=folder).strip()
        if not Path(place).is_relative_to(environment):
            sys.exit(f"try_wheel: the package was imported from {place}, not from the wheel")
        run(python, "-c", TEACHER, folder=folder)
        scalekd = environment / "bin" / "scalekd"
        run(scalekd, "--help", folder=folder)
        run(scalekd, "distill", "--recipe", "digits", "--smoke", "--out", "run", folder=folder)
        run(python, "-c", STUDENT, folder=folder)
    print("the wheel works")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
