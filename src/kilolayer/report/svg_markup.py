"""SVG for pages: clean-up of matplotlib's drawings, and validation of drawings before they are shown."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from kilolayer.report.clean_text import replace_unprintable

NAMESPACE = "http://www.w3.org/2000/svg"
_TAGS = frozenset({"svg", "title", "g", "defs", "clipPath", "path", "rect", "use", "text", "tspan"})
_ATTRIBUTES = frozenset(
    {"viewBox", "role", "aria-label", "style", "id", "d", "x", "y", "width", "height"}
) | {"transform", "clip-path", "text-anchor", "dominant-baseline", "fill", "stroke"}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FOREIGN = re.compile(r"url\((?!#)|@import|expression|\\", re.IGNORECASE)


def tidy_svg(markup: str, title: str, colours: Mapping[str, str]) -> str:
    """A figure that fits its column, has a title for assistive technology, the page's colours and unique ids.

    matplotlib's style sheet applies to `*` and would restyle the whole page, so it becomes the root's style.
    Its metadata contain addresses and are dropped.
    """
    root = ElementTree.fromstring(markup)  # noqa: S314 (matplotlib's own output)
    _drop(root, {"metadata", "style"})
    for element in root.iter():
        _plain_names(element)
        _recolour(element, colours)
    _frame(root, replace_unprintable(title))
    _own_ids(root, hashlib.sha256(markup.encode()).hexdigest()[:8])
    return ElementTree.tostring(root, encoding="unicode")


def validate_svg(markup: str) -> str:
    """The markup, written anew, if it is a drawing that `tidy_svg` could return; otherwise a ValueError."""
    if "<!" in markup or "<?" in markup:
        raise ValueError("Figure.svg: declarations, comments and instructions have no place in a drawing")
    try:
        root = ElementTree.fromstring(markup)  # noqa: S314 (without a DOCTYPE there are no entities)
    except ElementTree.ParseError as error:
        raise ValueError(f"Figure.svg: not well-formed ({error})") from error
    for fault in _faults(root):
        raise ValueError(f"Figure.svg: {fault}; only drawings of kilolayer.report.plots are shown")
    _frame(root, root.get("aria-label", ""))
    return ElementTree.tostring(root, encoding="unicode")


def _faults(root: Element) -> Iterator[str]:
    if root.tag != f"{{{NAMESPACE}}}svg":
        yield f"the root is {root.tag!r}, not an SVG"
    for element in root.iter():
        _plain_names(element)
        if element.tag not in _TAGS:
            yield f"the element {element.tag!r}"
        unfit = (name for name, value in element.items() if not _fit(name, value))
        yield from (f"the attribute {name}={element.get(name)!r}" for name in unfit)


def _fit(name: str, value: str) -> bool:
    if name == "href":
        return value.startswith("#")
    return name in _ATTRIBUTES and (name == "aria-label" or not _FOREIGN.search(value))


def _drop(root: Element, names: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in names:
                parent.remove(child)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _plain_names(element: Element) -> None:
    element.tag = _local(element.tag)
    attributes = [(_local(name), value) for name, value in element.items()]
    element.attrib.clear()
    element.attrib.update(attributes)


def _recolour(element: Element, colours: Mapping[str, str]) -> None:
    style = element.get("style")
    if style is not None:
        element.set("style", re.sub(r"#[0-9a-f]{6}", lambda hit: colours.get(hit[0], hit[0]), style))


def _frame(root: Element, title: str) -> None:
    box = root.get("viewBox", "0 0 1 1")
    heading = Element("title")
    heading.text = title
    for old in root.findall("title"):
        root.remove(old)
    root.insert(0, heading)
    root.attrib.clear()
    root.attrib.update(
        {"xmlns": NAMESPACE, "viewBox": box, "role": "img", "aria-label": title}
        | {"style": "width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt"}
    )


def _own_ids(root: Element, prefix: str) -> None:
    """Keep only the ids that are referenced, with the figure's digest as their prefix."""
    elements = list(root.iter())
    referenced = {target for element in elements for target in _targets(element)}
    for element in elements:
        name = element.attrib.pop("id", None)
        if name in referenced:
            element.set("id", f"k{prefix}-{name}")
        for key, value in element.items():
            element.set(key, _REFERENCE.sub(rf"url(#k{prefix}-\1)", value))
        if "href" in element.attrib:
            element.set("href", f"#k{prefix}-{element.attrib['href'][1:]}")


def _targets(element: Element) -> Iterator[str]:
    yield element.get("href", "")[1:]
    for value in element.attrib.values():
        yield from _REFERENCE.findall(value)
