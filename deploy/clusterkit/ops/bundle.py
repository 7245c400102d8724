"""Makes a bundle: the distribution's packages for hosts that reach no registry, in one file.

A bundle is a tar of packages, their index as apt reads it, and ``bundle.json``, which tells the release
and the architecture they are for. It has everything the packages depend on, down to libc: hosts take what
they lack.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clusterkit.ops import images
from clusterkit.ops.errors import DeployError, PreflightError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Below the checkout.
FOLDER: Final = Path(".cluster") / "bundles"
#: The file in a bundle that says what it is.
_ABOUT: Final = "bundle.json"
#: Seconds for fetching some 130 packages (70 MB); usually 10 to 30.
_DEADLINE: Final = 1800
_TAIL: Final = 15

# Runs in a container of the release. Each of its arguments is a package, or several separated by |, of which
# the first that there is will do. What it prints is the bundle; what the tools say goes to standard error.
_SCRIPT: Final = r"""
set -eu
exec 3>&1 >&2
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
apt-get update --quiet
names=
for wanted; do
    found=
    for name in $(echo "$wanted" | tr '|' ' '); do
        if apt-cache show "$name" >/dev/null 2>&1; then found=$name; break; fi
    done
    [ -n "$found" ] || { echo "this release has no package $wanted"; exit 1; }
    names="$names $found"
done
mkdir -p /bundle/partial
cd /bundle
chown _apt partial
# Resolved as for a machine that has nothing, so that it does not matter what a host has, and how old that is.
apt-get install --assume-yes --quiet --download-only --no-install-recommends \
    --option=Dir::State::status=/dev/null --option=Dir::Cache::archives=/bundle $names
rm -rf partial lock
for file in *.deb; do
    # An epoch's colon is %3a in the name, which apt would take for a colon when it opens the file.
    plain=$(echo "$file" | sed 's/_[0-9]*%3a/_/')
    [ "$plain" = "$file" ] || mv "$file" "$plain"
    dpkg-deb --field "$plain"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' \
        "$plain" "$(stat --format %s "$plain")" "$(sha256sum "$plain" | cut -d ' ' -f 1)"
done > Packages
. /etc/os-release
printf '{"release": "%s", "architecture": "%s", "packages": "%s"}\n' \
    "$VERSION_CODENAME" "$(dpkg --print-architecture)" "${names# }" > bundle.json
tar --create --numeric-owner --owner=0 --group=0 --mode=u=rwX,go=rX bundle.json Packages *.deb >&3
"""


@dataclass(frozen=True)
class Bundle:
    """A bundle: where it is, for which release and architecture of Debian, and the packages it is for."""

    path: Path
    release: str
    architecture: str
    packages: tuple[str, ...]


def build(
    root: Path, release: str, wanted: Sequence[Sequence[str]], report: Callable[[str], None] = lambda _: None
) -> Bundle:
    """Fetch the packages of Debian ``release`` (``trixie``), and all they depend on, into a bundle.

    Each of ``wanted`` is a list of packages, of which the first that the release has is taken. The
    architecture is that of the Docker engine. An earlier bundle of that release is replaced.

    Raises:
        PreflightError: there is no Docker engine, or no image of that release.
        DeployError: the packages cannot be had.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    images.ensure_engine(root / ".cluster" / "dockerd.log", report)
    image = images.ensure_base(release, report)
    report(f"fetching packages of Debian {release}")
    unfinished = folder / f"{release}.part"
    command = ["docker", "run", "--rm", "--interactive", image, "sh", "-s", "--"]
    _run([*command, *("|".join(names) for names in wanted)], unfinished, f"a bundle for Debian {release}")
    return read(unfinished.rename(folder / f"{release}.tar"))


def _run(command: list[str], output: Path, what: str) -> None:
    try:
        with output.open("wb") as file:
            done = subprocess.run(
                command,
                input=_SCRIPT.encode(),
                stdout=file,
                stderr=subprocess.PIPE,
                timeout=_DEADLINE,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise DeployError(f"{what} took more than {_DEADLINE} s", next_step="run it again") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()[-_TAIL:]
        raise DeployError(
            f"{what} cannot be made:\n" + "\n".join(f"  {line}" for line in lines),
            next_step="a bundle is made on a machine that reaches the distribution's packages",
        )


def read(path: Path) -> Bundle:
    """Return what the bundle in ``path`` is.

    Raises:
        PreflightError: there is none, or it is something else.
    """
    try:
        with tarfile.open(path) as tar:
            # The first file in it, so that not all has to be read.
            first = tar.next()
            file = tar.extractfile(first) if first and first.name == _ABOUT else None
            if file is None:
                raise PreflightError(f"{path} is no bundle", next_step="make bundle makes one")
            about = json.load(file)
    except (OSError, tarfile.TarError) as error:
        raise PreflightError(f"{path} is no bundle: {error}", next_step="make bundle makes one") from error
    return Bundle(path, about["release"], about["architecture"], tuple(about["packages"].split()))
