"""Directories and files that are written only when they are not yet as wanted."""

from __future__ import annotations

import os
import pwd
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
        "owner": {"type": "str", "default": ""},
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
        "owner": {"type": "str", "default": ""},
        "validate": {"type": "str", "default": ""},
    },
}

# What os.chown leaves as it is.
_UNCHANGED = -1


class FileSetError(Exception):
    """A file cannot be written as wanted."""


def read(path: Path) -> bytes | None:
    """Return the content of the file, or None when there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def replace(
    path: Path,
    content: bytes,
    mode: int = 0o600,
    check: Any = None,
    owner: tuple[int, int] = (_UNCHANGED, _UNCHANGED),
) -> None:
    """Write the file as a whole or not at all; `check` is called with the new file before it is put there."""
    # Next to its target, on the same file system: the rename is then one step. mkstemp makes it 0600.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if check:
                check(temporary)
            # By its handle: the directory may belong to a service's user, who could put a link there.
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class FileSet:
    """Writes the directories and files of one module call; `changed` holds the paths that it touched.

    `owner` owns what does not name an owner itself, and so does the group that is the owner's own; ""
    leaves a path to whom it belongs.
    """

    def __init__(self, module: AnsibleModule, owner: str = "") -> None:
        self._module = module
        self._owner = owner
        self.changed: list[str] = []

    def write_all(self, directories: list[Mapping[str, Any]], files: list[Mapping[str, Any]]) -> None:
        """Make the directories, in their order, and then the files.

        Raises:
            FileSetError: the command that checks a file refuses it, an owner does not exist, or a link is
                where a directory should be.
            OSError: a path cannot be written.
        """
        for wanted in directories:
            self._directory(Path(wanted["path"]), wanted)
        for wanted in files:
            self._file(Path(wanted["path"]), wanted)

    def _directory(self, path: Path, wanted: Mapping[str, Any]) -> None:
        if not path.is_dir():
            self.changed.append(str(path))
            if self._module.check_mode:
                return
            path.mkdir(parents=True, mode=0o700)
        self._attributes(path, wanted, os.O_DIRECTORY)

    def _file(self, path: Path, wanted: Mapping[str, Any]) -> None:
        content = wanted["content"].encode()
        if path.is_symlink() or read(path) != content:
            self.changed.append(str(path))
            if not self._module.check_mode:
                check = wanted.get("validate", "")
                replace(
                    path,
                    content,
                    int(wanted["mode"], 8),
                    lambda new: self._validate(path, new, check),
                    self._ids(wanted),
                )
            return
        self._attributes(path, wanted, 0)

    def _validate(self, path: Path, new: Path, command: str) -> None:
        if not command:
            return
        arguments = [part.replace("%s", str(new)) for part in shlex.split(command)]
        code, out, err = self._module.run_command(arguments)
        if code:
            raise FileSetError(f"{path} is not valid, and was left as it was: {(err or out).strip()}")

    def _attributes(self, path: Path, wanted: Mapping[str, Any], flags: int) -> None:
        """Give `path` its mode and owner; note when they were others.

        Raises:
            FileSetError: it is a link that somebody else could have put there.
        """
        mode, (user, group) = int(wanted["mode"], 8), self._ids(wanted)
        # What is in a directory of root's or our own is trusted: a home may be a link to a large disk.
        trusted = path.parent.stat().st_uid in {0, os.geteuid()}
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | flags | (0 if trusted else os.O_NOFOLLOW))
        except OSError:
            if path.is_symlink():
                raise FileSetError(
                    f"{path} is a symbolic link in somebody else's directory; remove it"
                ) from None
            raise
        try:
            status = os.fstat(handle)
            other_mode = stat.S_IMODE(status.st_mode) != mode
            other_owner = user not in {_UNCHANGED, status.st_uid} or group not in {_UNCHANGED, status.st_gid}
            if (other_mode or other_owner) and not self._module.check_mode:
                os.fchown(handle, user, group)
                os.fchmod(handle, mode)
        finally:
            os.close(handle)
        if (other_mode or other_owner) and str(path) not in self.changed:
            self.changed.append(str(path))

    def _ids(self, wanted: Mapping[str, Any]) -> tuple[int, int]:
        """Return the ids of the user and the group that `wanted` shall belong to."""
        name = wanted.get("owner") or self._owner
        if not name:
            return _UNCHANGED, _UNCHANGED
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            if self._module.check_mode:
                # Would have been made.
                return _UNCHANGED, _UNCHANGED
            raise FileSetError(
                f"{wanted['path']} shall belong to {name}, and there is no such user"
            ) from None
        return account.pw_uid, account.pw_gid
