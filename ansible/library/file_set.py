#!/usr/bin/python
"""Ansible module: write the directories and files of one component in one call."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clusterkit_files import DIRECTORIES, FILES, FileSet, FileSetError

DOCUMENTATION = r"""
---
module: file_set
short_description: Write several directories and files in one call
description:
  - Does for all files of a component what M(ansible.builtin.file) and M(ansible.builtin.copy) do for one. A
    run that changes nothing then costs one call per role, not one per file.
  - Contents are never shown, not in differences either; the result names the paths.
  - A file is replaced as a whole or not at all, and only after its O(files[].validate) command succeeded.
options:
  directories:
    description: Directories, parents before their children.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      mode:
        description: Mode, in octal digits.
        type: str
        default: "0700"
      owner:
        description: Who owns it, and its group; O(owner) when empty.
        type: str
        default: ""
  files:
    description: Files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path; its directory has to exist.
        type: path
        required: true
      content:
        description: What the file holds.
        type: str
        required: true
      mode:
        description: Mode, in octal digits.
        type: str
        default: "0600"
      owner:
        description: Who owns it, and its group; O(owner) when empty.
        type: str
        default: ""
      validate:
        description: A command that fails when the file cannot be used; C(%s) stands for the new file.
        type: str
        default: ""
  owner:
    description: User who owns what does not name an owner itself, and so does that user's own group.
      Unchanged when empty.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
author:
  - clusterkit
"""

EXAMPLES = r"""
- name: Write the configuration
  file_set:
    directories:
      - path: /srv/demo/valkey
    files:
      - path: /srv/demo/valkey/valkey.conf
        content: "{{ lookup('ansible.builtin.template', 'valkey.conf.j2') }}"
"""

RETURN = r"""
changed_paths:
  description: Paths that were made, written or given another mode or owner.
  type: list
  elements: str
  returned: always
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directories": DIRECTORIES,
            "files": FILES,
            "owner": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    options = module.params
    files = FileSet(module, options["owner"])
    try:
        files.write_all(options["directories"], options["files"])
    except (FileSetError, OSError, ValueError) as error:
        module.fail_json(msg=str(error), changed_paths=files.changed)
    module.exit_json(changed=bool(files.changed), changed_paths=files.changed)


if __name__ == "__main__":
    main()
