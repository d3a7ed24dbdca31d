"""The README as the package index shows it: its links, relative in the repository, lead to the repository there."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def absolute(link: re.Match[str]) -> str:
    """A Markdown link or picture with its whole address."""
    picture, text, target = link.groups()
    if "://" in target or target.startswith("#"):
        return link.group()
    return f"{picture}[{text}]({REPOSITORY}/{'raw' if picture else 'blob'}/main/{target})"


README = re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", absolute, (ROOT / "README.md").read_text("utf-8"))

setup(long_description=README, long_description_content_type="text/markdown")
