"""Package descriptions of Debian, as the package archive serves them: what the Debian examples are made of.

The index files Translation-en and Translation-fr are fetched with apt into a private folder: no root needed, nothing
of the system touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from cktk.errors import DataError

# The hooks of the system's apt need root, and mirrors offer indices that nobody here reads.
APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb-src;
#clear Acquire::IndexTargets::deb;
#clear Acquire::Languages;
Acquire::IndexTargets::deb::Translations {{
    MetaKey "$(COMPONENT)/i18n/Translation-$(LANGUAGE)";
    ShortDescription "Translation-$(LANGUAGE)";
    Description "$(RELEASE)/$(COMPONENT) Translation-$(LANGUAGE)";
}};
Acquire::Languages {{ "en"; "fr"; }};
Acquire::Retries "3";
APT::Sandbox::User "";
Dir::State "{folder}/state";
Dir::State::Lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""


def fetch_descriptions(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Descriptions by their checksum, English and French, of the main component that apt's sources name."""
    if shutil.which("apt-get") is None:
        raise DataError("this system has no apt-get")
    for name in ("state", "lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "apt.conf").write_text(APT_CONF.format(folder=folder.resolve()))
    run = subprocess.run(
        ["apt-get", "-c", str(folder / "apt.conf"), "update"],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    french = _best_index(folder / "lists")
    if french is None:
        said = (run.stderr.strip() or "apt's sources offer no French descriptions").splitlines()[0]
        raise DataError(f"apt-get update brought no Translation-fr ({said})")
    english = french.with_name(french.name.replace("Translation-fr", "Translation-en"))
    return descriptions(_read_index(english), "en"), descriptions(_read_index(french), "fr")


def _best_index(lists: Path) -> Path | None:
    """The French index of Debian 12's main component, else the largest one."""
    found = [
        path
        for path in lists.glob("*_main_i18n_Translation-fr*")
        if path.with_name(path.name.replace("Translation-fr", "Translation-en")).exists()
    ]
    return max(found, key=lambda path: ("_debian_dists_bookworm_main_" in path.name, path.stat().st_size), default=None)


def _read_index(path: Path) -> str:
    # apt may keep its lists compressed, by whatever method the system prefers; its own helper knows them all.
    command = ["/usr/lib/apt/apt-helper", "cat-file", str(path)]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8")


def descriptions(index: str, language: str) -> dict[str, str]:
    """Descriptions of a Translation file by the checksum of the English one that they translate."""
    found: dict[str, str] = {}
    for stanza in index.split("\n\n"):
        checksum = re.search(r"^Description-md5: (\S+)", stanza, re.MULTILINE)
        text = re.search(rf"^Description-{language}: (.*)", stanza, re.MULTILINE | re.DOTALL)
        if checksum and text:
            found.setdefault(checksum[1], text[1])
    return found


def paragraphs(description: str) -> list[str]:
    """The synopsis, then the paragraphs of the long description (which a lone full stop separates), a line each."""
    synopsis, _, body = description.partition("\n")
    return [synopsis.strip(), *(" ".join(part.split()) for part in re.split(r"\n \.\n", body) if body)]


def digest(text: str) -> str:
    """Short name of a text: eight hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
