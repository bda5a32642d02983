"""Reads docstrings in Transformers' markup for the API page; mkdocs.yml names this file as an extension of griffe."""

import re
from collections.abc import Collection
from typing import Any

import griffe


#: A reference to a class or function: [`Name`] or [`~module.Name`].
REFERENCE = re.compile(r"\[`~?(?:[a-z_]\w*\.)*([^`\]]+)`\]")
#: One or more arguments on a line: name (`type` of shape `(...)`, *optional*, defaults to `x`): description. The
#: description may be missing.
ARGUMENT = r"([\w, *]+) \(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)"
ARGUMENTS = re.compile(rf"^    {ARGUMENT}(?:, {ARGUMENT})*(?::|$)")
#: The first line of what is returned, where it begins with its type.
RETURNED = re.compile(r"^    `[^`]*`(?: or `[^`]*`)*: ")
SECTION = re.compile(r"^(\w+):$")
LIST_ITEM = re.compile(r"^ *[-*] ")


def plain_arguments(line: str, known: Collection[str]) -> str:
    """`name (type): description` of a line that has arguments in Transformers' markup.

    Whether an argument is optional, and its default, is left out of those whose signature is `known`.
    """
    if not (found := ARGUMENTS.match(line)):
        return line
    names, kinds = [], []
    for name, kind in re.findall(ARGUMENT, found[0]):
        names.append(name.strip(" ,"))
        kind = re.sub(r"[`*:]", "", kind).replace(", optional", "").replace("defaults to", "default")
        kinds.append(kind.split(", default")[0] if names[-1] in known else kind)
    return f"    {', '.join(names)} ({' or '.join(dict.fromkeys(kinds))}):{line[found.end() :]}"


def plain(text: str, known: Collection[str] = ()) -> str:
    """A docstring as Google's style has it, its lists set off by an empty line."""
    lines: list[str] = []
    section, in_list = "", False
    for line in REFERENCE.sub(r"`\1`", text).splitlines():
        if heading := SECTION.match(line):
            section = heading[1]
        elif section in ("Args", "Attributes"):
            line = plain_arguments(line, known)
        elif section == "Raises":
            line = re.sub(r"^    `(\w+)`:", r"    \1:", line)
        elif section in ("Returns", "Yields") and SECTION.match(lines[-1]):
            # griffe takes what comes before the first colon for the type
            kind, _, description = line.strip().partition("`: ") if RETURNED.match(line) else ("", "", line.strip())
            line = f"    {kind.replace('`', '')}: {description}"
        elif section in ("Returns", "Yields"):
            line = re.sub(r"^ {8}", "    ", line)
        if LIST_ITEM.match(line):
            if not in_list and lines and lines[-1].strip():
                lines.append("")
            in_list = True
        in_list = in_list and bool(line.strip())
        lines.append(line)
    return "\n".join(lines)


class TransformersMarkup(griffe.Extension):
    """Rewrites every docstring before it is parsed, and the default of a field `name: type = option(default, ...)`."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if isinstance(obj, griffe.Attribute) and isinstance(obj.value, griffe.ExprCall):
            if str(obj.value.function) == "option":
                obj.value = obj.value.arguments[0]
        if not isinstance(obj, griffe.Class):
            rewrite(obj)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        rewrite(cls)


def rewrite(obj: griffe.Object) -> None:
    """Rewrites the docstring of an object whose signature is known."""
    if obj.docstring:
        known = getattr(obj, "parameters", ())
        obj.docstring.value = plain(obj.docstring.value, [parameter.name for parameter in known])
