"""Directories as others write them while a process reads."""

from __future__ import annotations

import shutil
from pathlib import Path


class ConfigMap:
    """A volume as the kubelet writes it: file -> ..data/file, ..data -> ..<n>, swapped by a rename."""

    def __init__(self, directory: Path, content: str = "0") -> None:
        self.directory = directory
        self.number = 0
        self.file = directory / "upstreams.yaml"
        directory.mkdir()
        self.swap(content)
        self.file.symlink_to("..data/upstreams.yaml")

    def swap(self, content: str) -> None:
        """Put *content* in place of what was there."""
        old = self.directory / f"..{self.number}"
        self.number += 1
        new = self.directory / f"..{self.number}"
        new.mkdir()
        (new / "upstreams.yaml").write_text(content)
        link = self.directory / "..data_tmp"
        link.symlink_to(new.name)
        link.replace(self.directory / "..data")
        if old.exists():
            shutil.rmtree(old)
