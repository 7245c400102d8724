"""Directories and files that are written only when they are not yet as wanted."""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ansible.module_utils.basic import AnsibleModule

# The options `directories` and `files` of the modules that write files.
DIRECTORIES: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "default": [],
    "options": {
        "path": {"type": "path", "required": True},
        "mode": {"type": "str", "default": "0700"},
    },
}
FILES: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "default": [],
    "options": {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True, "no_log": True},
        "mode": {"type": "str", "default": "0600"},
        "validate": {"type": "str", "default": ""},
    },
}


class FileSetError(Exception):
    """A file cannot be written as wanted."""


def read(path: Path) -> bytes | None:
    """Return the content of the file, or None when there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def replace(path: Path, content: bytes, mode: int = 0o600, check: Any = None) -> None:
    """Write the file as a whole or not at all; `check` is called with the new file before it is put there."""
    # Next to its target, on the same file system: the rename is then one step. mkstemp makes it 0600.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        if check:
            check(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class FileSet:
    """Writes the directories and files of one module call; `changed` holds the paths that it touched."""

    def __init__(self, module: AnsibleModule, owner: str = "", group: str = "") -> None:
        self._module = module
        self._owner = owner or None
        self._group = group or None
        self.changed: list[str] = []

    def write_all(self, directories: list[Mapping[str, Any]], files: list[Mapping[str, Any]]) -> None:
        """Make the directories, in their order, and then the files.

        Raises:
            FileSetError: the command that checks a file refuses it.
            OSError: a path cannot be written.
        """
        for wanted in directories:
            self._directory(Path(wanted["path"]), int(wanted["mode"], 8))
        for wanted in files:
            self._file(Path(wanted["path"]), wanted)

    def _directory(self, path: Path, mode: int) -> None:
        if not path.is_dir():
            self.changed.append(str(path))
            if self._module.check_mode:
                return
            path.mkdir(parents=True, mode=0o700)
        self._attributes(path, mode)

    def _file(self, path: Path, wanted: Mapping[str, Any]) -> None:
        content, mode = wanted["content"].encode(), int(wanted["mode"], 8)
        if read(path) != content:
            self.changed.append(str(path))
            if self._module.check_mode:
                return
            replace(path, content, mode, lambda new: self._validate(path, new, wanted["validate"]))
        self._attributes(path, mode)

    def _validate(self, path: Path, new: Path, command: str) -> None:
        if not command:
            return
        arguments = [part.replace("%s", str(new)) for part in shlex.split(command)]
        code, out, err = self._module.run_command(arguments)
        if code:
            raise FileSetError(f"{path} is not valid, and was left as it was: {(err or out).strip()}")

    def _attributes(self, path: Path, mode: int) -> None:
        """Give `path` its mode and owner; note when they were others."""
        changed = stat.S_IMODE(path.stat().st_mode) != mode
        if changed and not self._module.check_mode:
            path.chmod(mode)
        # Ansible's own: they look up names and know check mode.
        changed = self._module.set_owner_if_different(str(path), self._owner, changed)
        changed = self._module.set_group_if_different(str(path), self._group, changed)
        if changed and str(path) not in self.changed:
            self.changed.append(str(path))
