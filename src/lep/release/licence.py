"""What the licence of a model asks of those who change it and pass it on.

This is no legal advice: the text of a licence decides. Identifiers are those of the hub.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lep.checkpoint.origin import license_files
from lep.errors import LepError

# Licences that let changed copies be passed on, most of them on conditions.
_NAMES = """
    apache-2.0 mit afl-3.0 agpl-3.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-
    by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-
    sa-3.0 cc-by-nc-sa-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-
    permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3
    llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail
    openrail++ osl-3.0 pddl postgresql qwen qwen-research unlicense wtfpl zlib
"""
REDISTRIBUTABLE = _NAMES.split()
NO_DERIVATIVES = ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0")
WITHOUT_IDENTIFIER = ("qwen", "qwen-research")  # `license: other` and a name on the hub
META = "Copyright © Meta Platforms, Inc. All Rights Reserved."
NOT_COMMERCIAL = "it must not be used commercially"


@dataclass(frozen=True)
class Terms:
    """What a licence asks beyond its own text."""

    conditions: str = ""  # in words
    prefix: str = ""  # with which the names of changed models must begin
    notice: str = ""  # text of a file NOTICE
    has_text: bool = False  # whether a copy of its text must be passed on


def _llama(version: str, prefix: str) -> Terms:
    built = f"Built with {'Meta Llama 3' if version == '3' else 'Llama'}"
    maker = "Meta Llama" if version == "3" else "Llama"
    return Terms(
        f"show “{built}”, begin the name of the model with “{prefix}”, pass on the agreement and "
        "a notice, and follow its acceptable use policy",
        prefix,
        f"{maker} {version} is licensed under the {maker} {version} Community License, {META}",
        has_text=True,
    )


_ATTRIBUTION = "name the makers and say what was changed"
_QWEN = (
    "show “Built with Qwen” or “Improved using Qwen”, pass on the agreement and say what changed"
)
TERMS = {
    "apache-2.0": Terms("keep the licence and the notices, and say what was changed"),
    "mit": Terms("keep the copyright notice"),
    "llama2": Terms(
        "pass on the agreement and a notice, and follow its acceptable use policy",
        notice=f"Llama 2 is licensed under the LLAMA 2 Community License, {META}",
        has_text=True,
    ),
    "llama3": _llama("3", "Llama 3"),
    **{f"llama{version}": _llama(version, "Llama") for version in ("3.1", "3.2", "3.3", "4")},
    "gemma": Terms(
        "pass on the terms with their restrictions of use, and a notice, and say what was changed",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
        has_text=True,
    ),
    "qwen": Terms(_QWEN, has_text=True),
    "qwen-research": Terms(f"{_QWEN}; {NOT_COMMERCIAL}", has_text=True),
}


@dataclass(frozen=True)
class Licence:
    """The licence of a model, as its card names it."""

    name: str | None  # None where it is not known

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """From the keys `license` and `license_name` of a card."""
        name = metadata.get("license")
        name = metadata.get("license_name") if name == "other" else name
        return cls(name.lower() if isinstance(name, str) and name != "unknown" else None)

    @property
    def terms(self) -> Terms:
        if self.name not in TERMS and (self.name or "").startswith("cc-by"):
            commercial = f"; {NOT_COMMERCIAL}" if "-nc" in str(self.name) else ""
            alike = " and keep the licence" if "-sa" in str(self.name) else ""
            return Terms(f"{_ATTRIBUTION}{alike}{commercial}")
        return TERMS.get(self.name or "", Terms())

    def metadata(self) -> dict[str, str]:
        """The keys of a card that name it, with a link to LICENSE if the hub has no name for it.

        Raises `LepError` for a name that no card can hold.
        """
        if self.name is None:
            return {}
        if self.name in (*REDISTRIBUTABLE, *NO_DERIVATIVES) and self.name not in WITHOUT_IDENTIFIER:
            return {"license": self.name}
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.name):
            raise LepError(
                f"the licence is {self.name[:100]!r}: give an identifier such as apache-2.0, or a "
                "name of small letters, digits, '.' and '-'"
            )
        return {"license": "other", "license_name": self.name, "license_link": "LICENSE"}

    def begins(self, name: str) -> bool:
        """Whether the name of a changed model begins as the licence asks.

        >>> [Licence("llama3").begins(name) for name in ("Llama-3-8B-ru", "llama-8b-ru", "Saiga")]
        [True, False, False]
        """
        return _plain(name).startswith(_plain(self.terms.prefix))

    def check_redistribution(self, folder: Path, name: str, *, stated: bool) -> None:
        """Raise `LepError` unless a changed model in `folder` may be published as `name`.

        `stated`: the user says that the licence allows it, for licences that are not known here.
        """
        if self.name is None:
            raise LepError(
                f"the licence of {folder} is unknown, so nobody may pass it on: look up that of "
                "the original model, and if it allows changed copies, give --licence NAME"
            )
        if self.name in NO_DERIVATIVES:
            raise LepError(
                f"{folder} has the licence {self.name}, which forbids publishing changed copies: "
                "keep it to yourself, or ask the makers of the original"
            )
        if self.name not in REDISTRIBUTABLE and not stated:
            raise LepError(
                f"{folder} has the licence {self.name}, whose terms lep does not know: read "
                f"whether it allows changed copies to be published, and if so give --licence "
                f"{self.name}"
            )
        if not self.begins(name):
            wanted = self.terms.prefix.replace(" ", "-")
            raise LepError(
                f"{folder} has the licence {self.name}, which asks for names that begin with "
                f"'{wanted}', and the name is '{name}': publish it as {wanted}-{name}, for example"
            )
        if self.terms.has_text and not license_files(folder):
            raise LepError(
                f"{folder} has the licence {self.name}, which must be passed on, and no file "
                "LICENSE: put the text of the licence there"
            )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
