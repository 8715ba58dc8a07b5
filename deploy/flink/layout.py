"""What a Flink on this machine is made of: Flink from packages, and a Java."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "1.19.3"
PACKAGES = ("apache-flink", "apache-flink-libraries")
ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".cache" / "flink" / VERSION / "pyflink"


def find_java() -> str:
    """Returns the java that Flink will take.

    Raises:
      FileNotFoundError: if there is none.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(f"{home}/bin/java" if home else "java")
    if java is None:
        raise FileNotFoundError(
            "Java 17 must be on PATH or in JAVA_HOME, but there is none; install it"
            " (Debian: openjdk-17-jre-headless)"
        )
    return java


def install(home: Path = HOME) -> None:
    """Lays out Flink from PyPI, unless it is there.

    Two packages hold it between them; what they depend on, an old Beam among it, is
    for Flink's own Python and is left out.
    """
    if home.exists():
        return
    partial = home.parent.with_name(f"{home.parent.name}.{os.getpid()}.partial")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    # Its scripts come in a wheel for Python 3.11; for others it would be built.
    command += ["--python-version=3.11", f"--target={partial}"]
    subprocess.run([*command, *(f"{p}=={VERSION}" for p in PACKAGES)], check=True)
    partial.rename(home.parent)
