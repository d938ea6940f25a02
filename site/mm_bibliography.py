"""The bibliography of the whole book: what the chapters cite, each entry with the chapters that do.

Every chapter has its own list, whose keys begin with the chapter (``c05-``); the lists of this page begin with ``all-``. Entries of
references.bib that no chapter cites stay out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

PAGE = "book/appendix/bibliography"
CHAPTER = re.compile(r"book/(\d\d)-")


class CitedIn(SphinxPostTransform):
    """Keep the entries that a chapter cites, and say which."""

    default_priority = 7                # after sphinxcontrib-bibtex has written its lists

    def run(self, **kwargs: Any) -> None:
        if self.env.docname != PAGE:
            return
        domain: Any = self.env.get_domain("cite")
        cited = {(reference.docname, target.key) for reference in domain.citation_refs for target in reference.targets}
        key_of = {}                                              # the entry of a list item on this page
        chapters: dict[str, dict[str, str]] = defaultdict(dict)  # for an entry the chapters, with the id in their lists
        for citation in domain.citations:
            docname = citation.bibliography_key.docname
            if docname == PAGE:
                key_of[citation.citation_id] = citation.entry.key
            elif CHAPTER.match(docname) and (docname, citation.key) in cited:
                chapters[citation.entry.key].setdefault(docname, citation.citation_id)
        for item in list(self.document.findall(nodes.list_item)):
            key = next((key_of[identity] for identity in item["ids"] if identity in key_of), None)
            if key is None:
                continue
            if not chapters[key]:
                item.parent.remove(item)
                continue
            item[-1] += self.links(chapters[key])
        for section in list(self.document.findall(nodes.section)):
            lists = list(section.findall(nodes.bullet_list))
            if section.parent is not self.document and lists and not any(len(one) for one in lists):
                section.parent.remove(section)

    def links(self, found: dict[str, str]) -> nodes.inline:
        """*Cited in chapter 5, 19.*"""
        inline = nodes.inline(classes=["mm-where"])
        for number, (docname, identity) in enumerate(sorted(found.items())):
            chapter = int(CHAPTER.match(docname).group(1))       # type: ignore[union-attr]
            uri = self.app.builder.get_relative_uri(PAGE, docname) + f"#{identity}"
            inline += nodes.Text(", " if number else " Chapter ")
            inline += nodes.reference("", str(chapter), internal=True, refuri=uri, reftitle=self.env.titles[docname].astext())
        inline += nodes.Text(".")
        return inline


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_post_transform(CitedIn)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
