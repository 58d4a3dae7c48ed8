"""Puts poolparty_server.pth beside the package, in wheels and in editable installs; everything else is in
setup.cfg.

setuptools has no declaration for a file that belongs at the top of site-packages.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

PTH = "poolparty_server.pth"


class BuildWithPth(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(PTH, os.path.join(self.build_lib, PTH))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, os.path.join(self.build_lib, PTH)]


class EditableWithPth(editable_wheel):
    """Adds the file to the finished wheel: its form is specified, how it is made is setuptools' affair."""

    def run(self) -> None:
        super().run()
        for name in os.listdir(self.dist_dir):
            if name.startswith("poolparty_server-") and name.endswith(".whl"):
                add_to_wheel(os.path.join(self.dist_dir, name), PTH)


def add_to_wheel(wheel: str, path: str) -> None:
    with open(path, "rb") as file:
        content = file.read()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(wheel) as old:
        members = {member: old.read(member) for member in old.infolist()}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        for member, data in members.items():
            if member.filename.endswith(".dist-info/RECORD"):
                data = f"{path},sha256={digest},{len(content)}\n".encode() + data
            new.writestr(member, data)
        new.writestr(path, content)


setup(cmdclass={"build_py": BuildWithPth, "editable_wheel": EditableWithPth})
