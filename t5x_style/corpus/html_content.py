"""The main content of a page, found by where its prose is.

One walk over the tree cuts the page into blocks of text (what a browser would set apart) and notes
of each how much of it is links, which containers it lies in, and whether an element around it is
named as something beside the content: navigation, comments, related pages, sharing. The content is
what the innermost container holds in which most of the page's prose lies; in it, blocks that are
mostly links, and short ones at its edges or of known wording, are left out. The headline is left
out too, as it is in the title.

All weights are set by hand from how pages are made, and learnt from none. Bounds on the source
(depth, attributes) are left to `html_scan`.
"""

import re
from collections.abc import Sequence

from lxml import etree

# Text that is set apart; all other elements run on in their line.
_BLOCKS = """
    address article aside blockquote body caption center dd details dialog div dl dt fieldset
    figcaption figure footer form frameset h1 h2 h3 h4 h5 h6 header hgroup hr html li main menu nav
    ol p pre section summary table tbody td tfoot th thead tr ul
"""
_BLOCK_TAGS = frozenset(_BLOCKS.split())
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_NO_TEXT = """
    head script style noscript template svg iframe object embed applet audio video canvas map select
    option button input textarea datalist dialog figcaption noframes
"""
_NO_TEXT_TAGS = frozenset(_NO_TEXT.split())
_BESIDE_TAGS = frozenset(("nav", "aside", "footer", "header", "form", "menu"))
_CONTENT_TAGS = frozenset(("article", "main"))
_NAMED_TAGS = _BESIDE_TAGS | _CONTENT_TAGS
_PART = r"(?:^|[\s_-])(?:%s)(?:$|[\s_-])"
# Names of classes and ids of what stands beside the content.
_BESIDE_NAMES = re.compile(
    _PART
    % (
        r"nav\w*|menu\w*|sub-?menu|side-?bar\w*|aside|rail|foot|footer\w*|masthead|topbar|"
        r"bread-?crumbs?|shar(?:e|es|ing|ebar|edaddy)|social\w*|follow|facebook|"
        r"related\w*|recommend\w*|recirc\w*|more-(?:from|stories|news|on|articles)|read-?more|"
        r"see-?also|also-(?:read|like)|you-may|read-next|up-next|next-?up|most-?(?:read|popular)|"
        r"popular|trending|latest|teasers?|outbrain|taboola|zergnet|"
        r"promo\w*|adverts?|advertis\w*|ads?|adv|adsense|adbox|adslot|ad-\w+|banner\w*|sponsor\w*|"
        r"newsletter\w*|subscri\w*|sign-?up|opt-?in|paywall|cookies?|cookie-?\w+|consent|gdpr|"
        r"pop-?up|modal|overlay|widgets?|tags|tag-?list|tag-?cloud|tag-links|topics|"
        r"author-?(?:bio|info|box|card|meta|name|details)|about-(?:the-)?author|bio|by-?line|"
        r"author|authors|meta|meta-?data|(?:post|entry|article|story)-?(?:meta|info|date)|date-?line|"
        r"time-?stamp|date|pub-?date|captions?|wp-caption-text|credits?|image-?(?:credit|caption)|"
        r"gallery\w*|carousel\w*|slide-?show|slider|pagination|pager|page-?nav\w*|tool-?bar|tools|"
        r"print|log-?in|search\w*|rating|ratings|poll|survey|donat\w*|skip-link|skip|hidden|hide|"
        r"visually-?hidden|sr-only|screen-reader-\w+|copyright|jp-relatedposts|toc"
    )
)
_COMMENT_NAMES = re.compile(
    _PART
    % (
        r"(?<!has-)(?<!no-)(?<!with-)comment(?!s?-(?:open|closed|enabled|disabled|on|off))"
        r"(?:s|list|er|ers|block|box|section|form|thread|wrap|area)?(?:-\w+)*|"
        r"disqus\w*|respond|replies|livefyre\w*"
    )
)
_CONTENT_NAMES = re.compile(
    _PART
    % (
        r"(?:article|post|entry|story|news|blog|content|main|page|single|text)-?"
        r"(?:\w+-)?(?:body|content|text|copy|main|inner|detail|details)|"
        r"articlebody|storybody|hentry|body-?(?:copy|text|content)|rich-?text|mw-parser-output"
    )
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_HIDDEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_SENTENCE_END = (".", "!", "?", ":", "\u2026", '"', "\u201d", "\u3002", "\uff01", "\uff1f")
# Lines that no article means.
_EDGE_WORDING = re.compile(
    r"(?:advertise?ment|sponsored|related(?: (?:articles?|stories|posts?|content|topics?|news))?|"
    r"(?:read|see|watch|listen|learn|find out|click here) (?:also|more|next|now)?\b.{0,6}|"
    r"share(?: this.*| on .*)?|tweet|follow us.*|sign up.*|subscribe.*|(?:post|leave) a comment.*|"
    r"comments?(?: \(?\d+\)?)?|\d+ comments?|(?:tags?|topics?|filed under|categor(?:y|ies))\s*:.*|"
    r"(?:photo|image|picture|credit|source|video)s?\s*(?:credit|by)?\s*:.{0,80}|story continues.*|"
    r"loading.*|print|e-?mail|save|more|continue reading.*|scroll down.*|"
    r"(?:recommended|trending|popular|most read|latest news|you may also like|more from).{0,40}|"
    r"(?:published|updated|posted|last updated|modified)\b.{0,60}|by [^.,]{3,50}|"
    r"copyright\b.*|\u00a9.*|all rights reserved.*|\W+)$",
    re.IGNORECASE,
)
_CAPTION = re.compile(
    r"[(\[](?:images?|photos?|pictures?|pics?|credit|illustration|source)\b[^()\[\]]{0,80}[)\]]$",
    re.IGNORECASE,
)
_LIST_OF_OTHERS = re.compile(
    r"(?:more|related|recommended|read|see also|further reading|trending|popular|latest|don.t miss|"
    r"also|you may|you might|up next|next)\b",
    re.IGNORECASE,
)
_BREAK = "\v"  # stands for a line break; two part paragraphs
_BREAKS = re.compile(r"\v\s*\v\s*")
_NAMES_CHARS = 512
_LEAST_PROSE_CHARS = 80
_LEAST_SENTENCE_CHARS = 30
_MOST_LINKS_OF_PROSE = 0.5
_RUNNING_TEXT = ("p", "ul", "ol", "dl", "pre", "blockquote", "table", "tbody", "tr", "td", "li")


class _Block:
    """A run of text that is set apart."""

    __slots__ = ("beside", "chars", "container", "link_chars", "prose", "tag", "text")

    def __init__(self, text: str, link_chars: int, tag: str, container: int, beside: int):
        self.text = text
        self.tag = tag
        self.container = container
        self.beside = beside
        self.chars = len(text)
        self.link_chars = min(link_chars, self.chars)
        own = self.chars - self.link_chars
        is_prose = own >= _LEAST_PROSE_CHARS or (
            own >= _LEAST_SENTENCE_CHARS and text.endswith(_SENTENCE_END)
        )
        is_prose = is_prose and self.link_chars <= _MOST_LINKS_OF_PROSE * self.chars
        self.prose = own if is_prose and tag not in _HEADINGS else 0


class _Container:
    """An element that holds blocks, or (of those beside the content) a part of the page."""

    __slots__ = ("kind", "names", "parent", "prose", "tag")

    def __init__(self, parent: int, tag: str = "", kind: str = "", names: str = ""):
        self.parent = parent
        self.tag = tag
        self.kind = kind
        self.names = names
        self.prose = 0


def main_content(source: str) -> str:
    """Returns the text of a page's main content; blocks are parted by empty lines.

    Args:
      source: HTML whose depth is bounded.
    """
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(source.encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError:  # nothing in it
        return ""
    if root is None:
        return ""
    page = _Page()
    page.walk(root)
    return _text_of(page.content())


class _Page:
    """Blocks, containers and parts beside the content of one page."""

    def __init__(self):
        self.blocks: list[_Block] = []
        self.containers = [_Container(-1)]
        self.besides = [_Container(-1)]  # 0 is none
        self._parts: list[str] = []
        self._link_chars = 0
        self._tag = "div"
        self._names: dict[str, str] = {}
        self._marked: list[tuple[str, int, int]] = []  # (what, container, part beside) of signs

    def walk(self, root: etree._Element) -> None:
        container = beside = links = preformatted = 0
        opened: list[tuple[int, int, str]] = []
        walker = etree.iterwalk(root, events=("start", "end"))
        parts = self._parts
        for event, element in walker:
            tag = element.tag
            if event == "start":
                if tag in _NO_TEXT_TAGS and not (len(element) and _holds_paragraph(element)):
                    walker.skip_subtree()
                    opened.append((container, beside, "skipped"))
                    continue
                kind = self._kind(element, tag) if element.attrib or tag in _NAMED_TAGS else ""
                opened.append((container, beside, self._tag))
                is_block = tag in _BLOCK_TAGS
                if is_block:
                    self._flush(container, beside, preformatted)
                    self._tag = tag
                    self.containers.append(
                        _Container(container, tag, kind, element.get("class", ""))
                    )
                    container = len(self.containers) - 1
                if kind in ("beside", "comments"):
                    self.besides.append(_Container(beside, tag, kind, element.get("class", "")))
                    beside = len(self.besides) - 1
                elif kind == "content" or tag == "h1":
                    self._marked.append((tag if tag == "h1" else kind, container, beside))
                if tag == "br":
                    parts.append(_BREAK)
                elif tag == "a":
                    links += 1
                elif tag == "pre":
                    preformatted += 1
                text = element.text
                if text:
                    parts.append(text)
                    if links:
                        self._link_chars += len(text)
                continue
            held = opened.pop()
            if held[2] != "skipped":
                if tag in _BLOCK_TAGS:
                    self._flush(container, beside, preformatted)
                    self._tag = held[2]
                if tag == "a":
                    links -= 1
                elif tag == "pre":
                    preformatted -= 1
            container, beside = held[0], held[1]
            text = element.tail
            if text:
                parts.append(text)
                if links:
                    self._link_chars += len(text)
        self._flush(container, beside, preformatted)

    def _kind(self, element: etree._Element, tag: str) -> str:
        """Returns what an element is named: "comments", "beside", "content" or nothing."""
        get = element.get
        style = get("style")
        if (style and _HIDDEN.search(style)) or get("hidden") is not None:
            return "beside"
        if get("itemprop") == "articleBody":
            return "content"
        if tag not in _BLOCK_TAGS and tag != "span":
            return ""
        names = f"{get('class', '')} {get('id', '')}"
        key = f"{tag} {names}" if tag in _NAMED_TAGS or tag == "body" else names
        kind = self._names.get(key)
        if kind is None:
            kind = self._names[key] = _kind_by_name(tag, names)
        return kind

    def _flush(self, container: int, beside: int, preformatted: int) -> None:
        if not self._parts:
            return
        text = "".join(self._parts)
        self._parts.clear()
        link_chars, self._link_chars = self._link_chars, 0
        if text.isspace():
            return
        if preformatted:
            text = text.replace(_BREAK, "\n").strip("\n").rstrip()
            self.blocks.append(_Block(text, link_chars, "pre", container, beside))
            return
        for line in _BREAKS.split(text) if _BREAK in text else [text]:
            words = " ".join(line.split())
            if words:
                share = round(link_chars * len(line) / len(text))
                self.blocks.append(_Block(words, share, self._tag, container, beside))

    def content(self) -> list[_Block]:
        """Returns the blocks of the main content."""
        total = sum(block.prose for block in self.blocks)
        blocks = self._not_beside(self.blocks, total)
        left = sum(block.prose for block in blocks)
        if left < 0.25 * total and left < 500:
            blocks, left = self.blocks, total
        if not left:
            return []
        for block in blocks:
            self.containers[block.container].prose += block.prose
        for container in reversed(self.containers):
            if container.parent >= 0:
                self.containers[container.parent].prose += container.prose
        return _edited(self._within(self._root(left), blocks))

    def _not_beside(self, blocks: Sequence[_Block], total: int) -> list[_Block]:
        besides = self.besides
        for block in blocks:
            besides[block.beside].prose += block.prose
        for part in reversed(besides):
            if part.parent > 0:
                besides[part.parent].prose += part.prose
        total -= sum(
            part.prose
            for part in besides[1:]
            if part.kind == "comments" and besides[part.parent].kind != "comments"
        )
        # What holds most of the prose is not beside it, whatever it is called: one part of the
        # page, or all of one class (page builders call each paragraph a widget).
        by_class: dict[str, int] = {}
        for part in besides[1:]:
            key = part.names or part.tag
            by_class[key] = by_class.get(key, 0) + part.prose
        holds_content = self._besides_with_content(total)
        counts = [False] + [
            number not in holds_content
            and (part.kind == "comments" or by_class[part.names or part.tag] <= 0.5 * total)
            for number, part in enumerate(besides[1:], 1)
        ]
        for number, part in enumerate(besides[1:], 1):
            counts[number] = counts[number] or counts[part.parent]
        return [block for block in blocks if not counts[block.beside]]

    def _besides_with_content(self, total: int) -> set[int]:
        """Returns the parts beside the content that cannot be: they hold what is named content."""
        found: set[int] = set()
        for what, _, beside in self._marked:
            while beside and beside not in found:
                part = self.besides[beside]
                if part.prose > (0.4 if what == "content" else 0.2) * total:
                    found.add(beside)
                beside = part.parent
        return found

    def _root(self, total: int) -> int:
        """Returns the innermost container that holds the content."""
        at = self._named_root(total)
        is_named = at > 0
        children: dict[int, list[int]] = {}
        for number, container in enumerate(self.containers):
            children.setdefault(container.parent, []).append(number)
        while below := children.get(at):
            best = max(below, key=lambda number: self.containers[number].prose)
            inner, outer = self.containers[best], self.containers[at]
            running = sum(
                self.containers[number].prose
                for number in below
                if number != best and self.containers[number].tag in _RUNNING_TEXT
            )
            # Within what is named content little is not; around it much may be.
            is_named = is_named or outer.kind == "content"
            least = 0.95 if is_named else 0.75
            if inner.prose < least * outer.prose or running > 0.05 * outer.prose:
                break
            if inner.tag in _RUNNING_TEXT:
                break
            at = best
        return at

    def _named_root(self, total: int) -> int:
        """Returns the innermost container that holds all of those of one name for the content."""
        by_name: dict[str, list[int]] = {}
        for number, container in enumerate(self.containers):
            if container.kind == "content":
                by_name.setdefault(f"{container.tag} {container.names}", []).append(number)
        found: list[tuple[int, int]] = []
        for numbers in by_name.values():
            prose = sum(self.containers[number].prose for number in self._outermost(numbers))
            if prose >= 0.4 * total:
                found.append((prose, self._common(numbers)))
        if not found:
            return 0
        most, best = max(found)
        return max(
            number for prose, number in found if prose >= 0.85 * most and self._is_in(number, best)
        )

    def _is_in(self, number: int, outer: int) -> bool:
        while number > outer:
            number = self.containers[number].parent
        return number == outer

    def _outermost(self, numbers: Sequence[int]) -> list[int]:
        """Returns those that lie in none of the others."""
        result: list[int] = []
        for number in numbers:  # in the order of the page
            if not (result and self._is_in(number, result[-1])):
                result.append(number)
        return result

    def _common(self, numbers: Sequence[int]) -> int:
        """Returns the innermost container around those of the numbers that hold prose."""
        held = {number for number in numbers if self.containers[number].prose}
        while len(held) > 1:
            last = max(held)
            held.remove(last)
            held.add(self.containers[last].parent)
        return max(held)

    def _within(self, root: int, blocks: Sequence[_Block]) -> list[_Block]:
        inside = [False] * len(self.containers)
        for number, container in enumerate(self.containers):
            inside[number] = number == root or (container.parent >= 0 and inside[container.parent])
        return [block for block in blocks if inside[block.container]]


def _holds_paragraph(element: etree._Element) -> bool:
    """Whether an element swallows the page, as unclosed ones do."""
    return (
        element.tag not in ("head", "script", "style", "figcaption")
        and element.find(".//p") is not None
    )


def _kind_by_name(tag: str, names: str) -> str:
    names = _HUMP.sub("-", names[:_NAMES_CHARS]).lower()
    if tag in ("body", "html"):
        return ""
    if _COMMENT_NAMES.search(names):
        return "comments"
    if tag in _BESIDE_TAGS:
        return "beside"
    if _CONTENT_NAMES.search(names):
        return "content"
    if tag in _CONTENT_TAGS:
        return "content"
    return "beside" if _BESIDE_NAMES.search(names) else ""


def _edited(blocks: Sequence[_Block]) -> list[_Block]:
    """Leaves out what is no part of the content though it lies among it."""
    kept = _without_lists_of_others(
        [block for block in blocks if block.tag != "h1" and not _is_beside_prose(block)]
    )
    # From the first running text to the last; a heading stays only with something below it.
    ends = [number for number, block in enumerate(kept) if block.prose or _is_running(block)]
    if not any(block.prose for block in kept):
        return []
    kept = kept[ends[0] : ends[-1] + 1]
    result: list[_Block] = []
    follows = False
    for block in reversed(kept):
        is_heading = block.tag in _HEADINGS
        if follows or not is_heading:
            result.append(block)
        follows = not is_heading
    return result[::-1]


def _is_running(block: _Block) -> bool:
    own = block.chars - block.link_chars
    return block.tag in ("p", "li", "pre", "blockquote") and own >= _LEAST_SENTENCE_CHARS


def _without_lists_of_others(blocks: Sequence[_Block]) -> list[_Block]:
    """Leaves out headings that announce other pages, with the list below them."""
    kept: list[_Block] = []
    is_listing = False
    for block in blocks:
        is_heading = block.tag in _HEADINGS or (block.chars < 60 and not block.prose)
        if is_heading and _LIST_OF_OTHERS.match(block.text):
            is_listing = True
        elif not (is_listing and block.tag == "li"):
            is_listing = False
            kept.append(block)
    return kept


def _is_beside_prose(block: _Block) -> bool:
    if block.link_chars > 0.6 * block.chars:
        return True
    if block.chars < 250 and _CAPTION.search(block.text):
        return True
    return block.chars < 120 and _EDGE_WORDING.match(block.text) is not None


def _text_of(blocks: Sequence[_Block]) -> str:
    pieces: list[str] = []
    before = None
    for block in blocks:
        if before is not None:
            pieces.append("\n" if before.tag == block.tag == "li" else "\n\n")
        pieces.append(f"\u2022 {block.text}" if block.tag == "li" else block.text)
        before = block
    return "".join(pieces)
